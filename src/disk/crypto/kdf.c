/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "disk/crypto/kdf.h"

#include <errno.h>
#include <sys/random.h>
#include <time.h>

#include "disk/crypto/gcrypt.h"

static const struct {
    int id;
    unsigned length;
} hashes[] = {
    [BLOCK_HASH_MD5] = {GCRY_MD_MD5, 16},       [BLOCK_HASH_SHA1] = {GCRY_MD_SHA1, 20},
    [BLOCK_HASH_SHA224] = {GCRY_MD_SHA224, 28}, [BLOCK_HASH_SHA256] = {GCRY_MD_SHA256, 32},
    [BLOCK_HASH_SHA384] = {GCRY_MD_SHA384, 48}, [BLOCK_HASH_SHA512] = {GCRY_MD_SHA512, 64},
    [BLOCK_HASH_RIPEMD160] = {GCRY_MD_RMD160, 20},
};

const char *const block_hash_names[] = {"md5",    "sha1",   "sha224",   "sha256",
                                        "sha384", "sha512", "ripemd160"};

void block_gcrypt_init(void)
{
    static gsize ready;
    if (!g_once_init_enter(&ready))
        return;
    if (!gcry_control(GCRYCTL_INITIALIZATION_FINISHED_P)) {
        gcry_check_version(NULL);
        /* Its locked memory is 32 KiB for the whole process; keys are wiped here instead. */
        gcry_control(GCRYCTL_DISABLE_SECMEM, 0);
        gcry_control(GCRYCTL_INITIALIZATION_FINISHED, 0);
    }
    g_once_init_leave(&ready, 1);
}

int block_gcrypt_digest(BlockHash hash)
{
    return hashes[hash].id;
}

unsigned block_hash_length(BlockHash hash)
{
    return hashes[hash].length;
}

int block_hash_digest(BlockHash hash, const void *data, size_t length, uint8_t *out)
{
    block_gcrypt_init();
    if (gcry_md_test_algo(hashes[hash].id))
        return -ENOTSUP;
    gcry_md_hash_buffer(hashes[hash].id, out, data, length);
    return 0;
}

int block_pbkdf2(BlockHash hash, const void *secret, size_t secret_length, const uint8_t *salt,
                 size_t salt_length, uint64_t iterations, uint8_t *out, size_t out_length)
{
    block_gcrypt_init();
    if (gcry_md_test_algo(hashes[hash].id))
        return -ENOTSUP;
    gcry_error_t error =
        gcry_kdf_derive(secret, secret_length, GCRY_KDF_PBKDF2, hashes[hash].id, salt, salt_length,
                        (unsigned long)iterations, out_length, out);
    return error ? -EINVAL : 0;
}

static uint64_t thread_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* The thread's own time counts, so that a busy host does not make weak keys. */
uint64_t block_pbkdf2_iterations(BlockHash hash, size_t out_length, uint64_t milliseconds)
{
    static const uint8_t salt[32];
    uint8_t out[BLOCK_CIPHER_KEY_MAX];
    uint64_t enough_ns = 20000000; /* a measurement that noise does not matter to */
    for (uint64_t tried = 1u << 12; milliseconds > 0; tried *= 4) {
        uint64_t start = thread_ns();
        if (out_length > sizeof(out) || block_pbkdf2(hash, "measured", 8, salt, sizeof(salt), tried,
                                                     out, out_length) < 0)
            return 0;
        uint64_t took = thread_ns() - start;
        if (took >= enough_ns || tried >= 1u << 30)
            return (uint64_t)MIN(
                (double)tried * 1e6 * (double)milliseconds / (double)MAX(took, 1), 1e18);
    }
    return 0;
}

int block_random(void *out, size_t length)
{
    for (size_t done = 0; done < length;) {
        ssize_t got = getrandom((uint8_t *)out + done, length - done, 0);
        if (got < 0 && errno != EINTR)
            return -errno;
        done += got > 0 ? (size_t)got : 0;
    }
    return 0;
}
