/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Inside disk/crypto: the library, set up. */
#pragma once

#include <gcrypt.h>

#include "disk/crypto/cipher.h"

/* Before any other call of the library; any thread, any number of times. */
void block_gcrypt_init(void);
int block_gcrypt_digest(BlockHash hash); /* GCRY_MD_... */
