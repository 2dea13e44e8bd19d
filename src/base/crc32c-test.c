/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/crc32c.h"

#include <glib.h>
#include <string.h>

/* RFC 3720, appendix B.4 */
static void test_vectors(void)
{
    uint8_t bytes[32];
    g_assert_cmphex(crc32c(0, "123456789", 9), ==, 0xe3069283);
    memset(bytes, 0, 32);
    g_assert_cmphex(crc32c(0, bytes, 32), ==, 0x8a9136aa);
    memset(bytes, 0xff, 32);
    g_assert_cmphex(crc32c(0, bytes, 32), ==, 0x62a8ab43);
    for (uint8_t i = 0; i < 32; i++)
        bytes[i] = i;
    g_assert_cmphex(crc32c(0, bytes, 32), ==, 0x46dd794e);
    for (size_t cut = 0; cut <= 32; cut++)
        g_assert_cmphex(crc32c(crc32c(0, bytes, cut), bytes + cut, 32 - cut), ==, 0x46dd794e);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/base/crc32c/vectors", test_vectors);
    return g_test_run();
}
