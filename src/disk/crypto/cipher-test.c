/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Known answers of the algorithms and modes; many threads on one key; keys from passphrases. */
#include "disk/crypto/cipher.h"

#include <string.h>

#include "base/bytes.h"
#include "disk/crypto/kdf.h"

#define SECTOR BLOCK_CIPHER_SECTOR

static size_t unhex(const char *text, uint8_t *out)
{
    size_t n = strlen(text) / 2;
    for (size_t i = 0; i < n; i++)
        out[i] = (uint8_t)(g_ascii_xdigit_value(text[2 * i]) << 4 |
                           g_ascii_xdigit_value(text[2 * i + 1]));
    return n;
}

static BlockCipher *make(BlockCipherAlg alg, BlockCipherMode mode, BlockIvgen ivgen,
                         BlockHash hash, const char *key)
{
    g_autoptr(GError) error = NULL;
    uint8_t bytes[BLOCK_CIPHER_KEY_MAX];
    BlockCipherParams params = {alg, mode, ivgen, hash};
    BlockCipher *cipher = block_cipher_new(&params, bytes, unhex(key, bytes), &error);
    g_assert_no_error(error);
    return cipher;
}

typedef struct Known {
    BlockCipherAlg alg;
    const char *key, *plain, *answer; /* the first block */
} Known;

/*
 * AES: FIPS 197 appendix C. DES: the example of FIPS 46. 3DES: NIST SP 800-67 appendix B. CAST5:
 * RFC 2144 appendix B.1. Serpent: NESSIE's set 1, vector 0. Twofish: its paper's tables.
 */
static const Known known[] = {
    {BLOCK_CIPHER_AES_128, "000102030405060708090a0b0c0d0e0f", "00112233445566778899aabbccddeeff",
     "69c4e0d86a7b0430d8cdb78070b4c55a"},
    {BLOCK_CIPHER_AES_192, "000102030405060708090a0b0c0d0e0f1011121314151617",
     "00112233445566778899aabbccddeeff", "dda97ca4864cdfe06eaf70a0ec0d7191"},
    {BLOCK_CIPHER_AES_256, "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
     "00112233445566778899aabbccddeeff", "8ea2b7ca516745bfeafc49904b496089"},
    {BLOCK_CIPHER_DES, "133457799bbcdff1", "0123456789abcdef", "85e813540f0ab405"},
    {BLOCK_CIPHER_3DES, "0123456789abcdef23456789abcdef01456789abcdef0123", "5468652071756663",
     "a826fd8ce53b855f"},
    {BLOCK_CIPHER_CAST5_128, "0123456712345678234567893456789a", "0123456789abcdef",
     "238b4fe5847e44b2"},
    {BLOCK_CIPHER_SERPENT_128, "80000000000000000000000000000000",
     "00000000000000000000000000000000", "264e5481eff42a4606abda06c0bfda3d"},
    {BLOCK_CIPHER_SERPENT_192, "800000000000000000000000000000000000000000000000",
     "00000000000000000000000000000000", "9e274ead9b737bb21efcfca548602689"},
    {BLOCK_CIPHER_SERPENT_256, "8000000000000000000000000000000000000000000000000000000000000000",
     "00000000000000000000000000000000", "a223aa1288463c0e2be38ebd825616c0"},
    {BLOCK_CIPHER_TWOFISH_128, "00000000000000000000000000000000",
     "00000000000000000000000000000000", "9f589f5cf6122c32b6bfec2f2ae8c35a"},
    {BLOCK_CIPHER_TWOFISH_192, "0123456789abcdeffedcba98765432100011223344556677",
     "00000000000000000000000000000000", "cfd1d2e5a9be9cdf501f13b892bd2248"},
    {BLOCK_CIPHER_TWOFISH_256, "0123456789abcdeffedcba987654321000112233445566778899aabbccddeeff",
     "00000000000000000000000000000000", "37527be0052334b89f0cfccae87cfa20"},
};

static void test_algorithms(void)
{
    for (size_t i = 0; i < G_N_ELEMENTS(known); i++) {
        uint8_t in[SECTOR] = {0}, out[SECTOR], back[SECTOR], answer[16];
        g_autoptr(BlockCipher) c =
            make(known[i].alg, BLOCK_CIPHER_ECB, BLOCK_IVGEN_PLAIN64, 0, known[i].key);
        size_t block = unhex(known[i].plain, in);
        g_assert_cmpuint(unhex(known[i].answer, answer), ==, block);
        g_assert_cmpuint(block_cipher_block_length(known[i].alg), ==, block);
        g_assert_cmpint(block_cipher_encrypt(c, 9, in, out, SECTOR), ==, 0);
        g_assert_cmpmem(out, block, answer, block);
        g_assert_cmpint(block_cipher_decrypt(c, 9, out, back, SECTOR), ==, 0);
        g_assert_cmpmem(back, SECTOR, in, SECTOR);
    }
}

/* IEEE 1619-2007, annex B, vectors 4 and 10: whole sectors. */
static void test_xts(void)
{
    static const struct {
        BlockCipherAlg alg;
        uint64_t sector;
        const char *key, *answer;
    } vectors[] = {
        {BLOCK_CIPHER_AES_128, 0, "27182818284590452353602874713526"
                                  "31415926535897932384626433832795",
         "27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89c"},
        {BLOCK_CIPHER_AES_256, 0xff,
         "2718281828459045235360287471352662497757247093699959574966967627"
         "3141592653589793238462643383279502884197169399375105820974944592",
         "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b"},
    };
    uint8_t in[SECTOR], out[SECTOR], answer[32];
    for (size_t i = 0; i < SECTOR; i++)
        in[i] = (uint8_t)i;
    for (size_t i = 0; i < G_N_ELEMENTS(vectors); i++) {
        g_autoptr(BlockCipher) c =
            make(vectors[i].alg, BLOCK_CIPHER_XTS, BLOCK_IVGEN_PLAIN64, 0, vectors[i].key);
        unhex(vectors[i].answer, answer);
        g_assert_cmpint(block_cipher_encrypt(c, vectors[i].sector, in, out, SECTOR), ==, 0);
        g_assert_cmpmem(out, sizeof(answer), answer, sizeof(answer));
    }
}

/* One block in ECB mode, for working out by hand what a vector must be. */
static void block_of(BlockCipherAlg alg, const uint8_t *key, uint8_t *block)
{
    uint8_t sector[SECTOR] = {0};
    BlockCipherParams params = {alg, BLOCK_CIPHER_ECB, 0, 0};
    g_autoptr(BlockCipher) c =
        block_cipher_new(&params, key, block_cipher_key_length(alg, BLOCK_CIPHER_ECB), NULL);
    memcpy(sector, block, 16);
    g_assert_cmpint(block_cipher_encrypt(c, 0, sector, sector, SECTOR), ==, 0);
    memcpy(block, sector, 16);
}

/* CBC of zeroes: its first block is the vector, encrypted. */
static void test_vectors(void)
{
    uint64_t sector = 0x123456789aull;
    static const char key_text[] = "000102030405060708090a0b0c0d0e0f";
    uint8_t key[16], digest[32];
    unhex(key_text, key);
    g_assert_cmpint(block_hash_digest(BLOCK_HASH_SHA256, key, sizeof(key), digest), ==, 0);
    for (BlockIvgen g = 0; g < BLOCK_IVGEN_COUNT; g++) {
        uint8_t in[SECTOR] = {0}, out[SECTOR], block[16] = {0};
        g_autoptr(BlockCipher) c =
            make(BLOCK_CIPHER_AES_128, BLOCK_CIPHER_CBC, g, BLOCK_HASH_SHA256, key_text);
        le64_put(block, g == BLOCK_IVGEN_PLAIN ? sector & UINT32_MAX : sector);
        if (g == BLOCK_IVGEN_ESSIV) /* a digest of 32 bytes makes it AES-256 */
            block_of(BLOCK_CIPHER_AES_256, digest, block);
        block_of(BLOCK_CIPHER_AES_128, key, block);
        g_assert_cmpint(block_cipher_encrypt(c, sector, in, out, SECTOR), ==, 0);
        g_assert_cmpmem(out, 16, block, 16);
    }
}

/* The second of two sectors is what it is alone; CTR counts on from the vector. */
static void test_sectors(void)
{
    static const BlockCipherMode modes[] = {BLOCK_CIPHER_CBC, BLOCK_CIPHER_XTS, BLOCK_CIPHER_CTR};
    for (size_t m = 0; m < G_N_ELEMENTS(modes); m++) {
        uint8_t in[2 * SECTOR], out[2 * SECTOR], one[SECTOR];
        g_autoptr(BlockCipher) c =
            make(BLOCK_CIPHER_AES_128, modes[m], BLOCK_IVGEN_PLAIN64, 0,
                 modes[m] == BLOCK_CIPHER_XTS
                     ? "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
                     : "000102030405060708090a0b0c0d0e0f");
        for (size_t i = 0; i < sizeof(in); i++)
            in[i] = (uint8_t)(i * 7);
        g_assert_cmpint(block_cipher_encrypt(c, 41, in, out, sizeof(in)), ==, 0);
        g_assert_cmpint(block_cipher_encrypt(c, 42, in + SECTOR, one, SECTOR), ==, 0);
        g_assert_cmpmem(out + SECTOR, SECTOR, one, SECTOR);
        g_assert_cmpint(memcmp(out, in, SECTOR), !=, 0);
        g_assert_cmpint(block_cipher_encrypt(c, 42, in, out, SECTOR - 1), <, 0);
    }
}

/* Lists whose entries cut sectors anywhere give what a flat buffer gives. */
static void test_lists(void)
{
    static const size_t cuts[] = {100, 412, 1024, 3, 1000, 533};
    uint8_t plain[6 * SECTOR], flat[6 * SECTOR], listed[6 * SECTOR], back[6 * SECTOR + 8];
    struct iovec iov[G_N_ELEMENTS(cuts)];
    g_autoptr(BlockCipher) c = make(BLOCK_CIPHER_AES_128, BLOCK_CIPHER_CBC, BLOCK_IVGEN_PLAIN64, 0,
                                    "000102030405060708090a0b0c0d0e0f");
    for (size_t i = 0; i < sizeof(plain); i++)
        plain[i] = (uint8_t)(i ^ i >> 8);
    uint8_t *at = plain;
    for (size_t i = 0; i < G_N_ELEMENTS(cuts); at += cuts[i++])
        iov[i] = (struct iovec){at, cuts[i]};
    g_assert_cmpint(block_cipher_encrypt(c, 5, plain, flat, sizeof(plain)), ==, 0);
    g_assert_cmpint(block_cipher_encrypt_iov(c, 5, iov, 6, 0, listed, sizeof(listed)), ==, 0);
    g_assert_cmpmem(listed, sizeof(listed), flat, sizeof(flat));
    at = back + 8;
    for (size_t i = 0; i < G_N_ELEMENTS(cuts); at += cuts[i++])
        iov[i].iov_base = at;
    g_assert_cmpint(block_cipher_decrypt_iov(c, 6, flat + SECTOR, iov, 6, SECTOR, 5 * SECTOR), ==,
                    0);
    g_assert_cmpmem(back + 8 + SECTOR, 5 * SECTOR, plain + SECTOR, 5 * SECTOR);
    g_assert_cmpint(block_cipher_decrypt_iov(c, 5, flat, iov, 6, SECTOR, 6 * SECTOR), <, 0);
    g_assert_cmpint(block_cipher_encrypt_iov(c, 5, iov, 6, 0, listed, 100), <, 0);
}

static void test_refusals(void)
{
    static const struct {
        BlockCipherParams params;
        const char *words;
    } refused[] = {
        {{BLOCK_CIPHER_3DES, BLOCK_CIPHER_XTS, 0, 0}, "not compatible with DES"},
        {{BLOCK_CIPHER_CAST5_128, BLOCK_CIPHER_XTS, 0, 0}, "Unsupported cipher mode xts"},
        {{BLOCK_CIPHER_AES_128, BLOCK_CIPHER_CBC, BLOCK_IVGEN_ESSIV, BLOCK_HASH_SHA1},
         "No AES cipher with key size 20 available"},
        {{BLOCK_CIPHER_SERPENT_128, BLOCK_CIPHER_CBC, BLOCK_IVGEN_ESSIV, BLOCK_HASH_SHA512},
         "No Serpent cipher with key size 64 available"},
        {{BLOCK_CIPHER_CAST5_128, BLOCK_CIPHER_CBC, BLOCK_IVGEN_ESSIV, BLOCK_HASH_SHA256},
         "Cipher cast5-128 not supported with essiv"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(refused); i++) {
        g_autoptr(GError) error = NULL;
        g_assert_false(block_cipher_supported(&refused[i].params, &error));
        g_assert_nonnull(strstr(error->message, refused[i].words));
    }
    g_autoptr(GError) error = NULL;
    BlockCipherParams aes = {BLOCK_CIPHER_AES_256, BLOCK_CIPHER_XTS, 0, 0};
    uint8_t key[32] = {0};
    g_assert_null(block_cipher_new(&aes, key, sizeof(key), &error));
    g_assert_nonnull(strstr(error->message, "should be 64"));
}

/* ---- threads */

static BlockCipher *shared;

static gpointer work(gpointer number)
{
    uint8_t plain[8 * SECTOR], bytes[8 * SECTOR];
    for (unsigned round = 0; round < 200; round++) {
        uint64_t sector = GPOINTER_TO_UINT(number) * 1000 + round;
        memset(plain, (int)sector, sizeof(plain));
        if (block_cipher_encrypt(shared, sector, plain, bytes, sizeof(bytes)) < 0 ||
            block_cipher_decrypt(shared, sector, bytes, bytes, sizeof(bytes)) < 0 ||
            memcmp(plain, bytes, sizeof(bytes)) != 0)
            return GINT_TO_POINTER(1);
    }
    return NULL;
}

static void test_threads(void)
{
    GThread *threads[8];
    shared = make(BLOCK_CIPHER_AES_256, BLOCK_CIPHER_CBC, BLOCK_IVGEN_ESSIV, BLOCK_HASH_SHA256,
                  "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f");
    for (unsigned i = 0; i < G_N_ELEMENTS(threads); i++)
        threads[i] = g_thread_new("cipher", work, GUINT_TO_POINTER(i));
    for (unsigned i = 0; i < G_N_ELEMENTS(threads); i++)
        g_assert_null(g_thread_join(threads[i]));
    block_cipher_free(shared);
}

/* ---- keys */

/* RFC 6070 (SHA-1) and RFC 7914 section 11 (SHA-256). */
static void test_pbkdf2(void)
{
    uint8_t out[64], answer[64];
    size_t n = unhex("4b007901b765489abead49d926f721d065a429c1", answer);
    g_assert_cmpint(block_pbkdf2(BLOCK_HASH_SHA1, "password", 8, (const uint8_t *)"salt", 4, 4096,
                                 out, n),
                    ==, 0);
    g_assert_cmpmem(out, n, answer, n);
    n = unhex("55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc"
              "49ca9cccf179b645991664b39d77ef317c71b845b1e30bd509112041d3a19783",
              answer);
    g_assert_cmpint(
        block_pbkdf2(BLOCK_HASH_SHA256, "passwd", 6, (const uint8_t *)"salt", 4, 1, out, n), ==, 0);
    g_assert_cmpmem(out, n, answer, n);
    g_assert_cmpint(block_pbkdf2(BLOCK_HASH_SHA256, "", 0, (const uint8_t *)"salt", 4, 1, out, 32),
                    ==, 0);
}

static void test_iterations(void)
{
    uint64_t ten = block_pbkdf2_iterations(BLOCK_HASH_SHA256, 32, 10);
    uint64_t hundred = block_pbkdf2_iterations(BLOCK_HASH_SHA256, 32, 100);
    g_assert_cmpuint(ten, >, 100);
    g_assert_cmpuint(hundred, >, ten * 3);
    g_assert_cmpuint(block_pbkdf2_iterations(BLOCK_HASH_SHA1, 32, UINT64_MAX), >, UINT32_MAX);
    g_assert_cmpuint(block_pbkdf2_iterations(BLOCK_HASH_SHA1, 32, 0), ==, 0);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/disk/cipher/algorithms", test_algorithms);
    g_test_add_func("/disk/cipher/xts", test_xts);
    g_test_add_func("/disk/cipher/vectors", test_vectors);
    g_test_add_func("/disk/cipher/sectors", test_sectors);
    g_test_add_func("/disk/cipher/lists", test_lists);
    g_test_add_func("/disk/cipher/refusals", test_refusals);
    g_test_add_func("/disk/cipher/threads", test_threads);
    g_test_add_func("/disk/cipher/pbkdf2", test_pbkdf2);
    g_test_add_func("/disk/cipher/iterations", test_iterations);
    return g_test_run();
}
