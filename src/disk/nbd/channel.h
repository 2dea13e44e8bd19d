/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A byte stream to an NBD peer: a connected socket, from STARTTLS on encrypted. One thread may
 * read while another writes; who reads and who writes is the owner's to serialise.
 */
#pragma once

#include "disk/objects.h"

#include <sys/uio.h>

typedef struct NbdChannel NbdChannel;
typedef struct NbdTls NbdTls; /* loaded credentials; shared by many channels */

NbdChannel *nbd_channel_new(int fd); /* takes @fd */
void nbd_channel_free(NbdChannel *channel);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(NbdChannel, nbd_channel_free)

/* From now on reads and writes fail with -ETIMEDOUT after @seconds in all; 0: never. */
void nbd_channel_deadline(NbdChannel *channel, unsigned seconds);
/* Ends every read and write, now and later. Any thread. */
void nbd_channel_shut(NbdChannel *channel);

/* All: 0 or -errno; the whole length or nothing. A closed stream is -ECONNRESET, at its first byte
 * -EPIPE. */
int nbd_channel_read(NbdChannel *channel, void *buffer, size_t length);
int nbd_channel_readv(NbdChannel *channel, const struct iovec *iov, int n, uint64_t skip,
                      uint64_t length);
int nbd_channel_skip(NbdChannel *channel, uint64_t length);
/* @more: something follows at once. */
int nbd_channel_writev(NbdChannel *channel, const struct iovec *iov, int n, uint64_t length,
                       bool more);
int nbd_channel_write(NbdChannel *channel, const void *buffer, size_t length, bool more);
/*
 * [offset, offset + length) of a file, without a copy; where the file ends or fails, zeroes go in
 * its place and *failed (0 before) is -errno. -EOPNOTSUPP before the first byte: the channel cannot
 * do this.
 */
int nbd_channel_send_file(NbdChannel *channel, int file, uint64_t offset, uint64_t length,
                          int *failed);

/* ---- TLS */

/* Reads what @credentials name; a password comes from @objects. */
NbdTls *nbd_tls_new(const BlockTlsCredentials *credentials, const BlockObjects *objects,
                    GError **err);
void nbd_tls_free(NbdTls *tls);
/* Server: only the client whose certificate has this distinguished name. */
void nbd_tls_authorize(NbdTls *tls, const char *identity);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(NbdTls, nbd_tls_free)
/*
 * The handshake, in either role (the credentials'). A client checks that the server's certificate
 * is for @hostname; NULL is refused where certificates are checked. @tls outlives the channel.
 */
bool nbd_channel_start_tls(NbdChannel *channel, const NbdTls *tls, const char *hostname,
                           GError **err);

/* tls.c's side of a channel: -errno or the number of bytes, at least one. */
typedef struct NbdTlsSession NbdTlsSession;
ssize_t nbd_tls_receive(NbdTlsSession *session, void *buffer, size_t length);
ssize_t nbd_tls_send(NbdTlsSession *session, const void *buffer, size_t length);
void nbd_tls_session_free(NbdTlsSession *session);
NbdTlsSession *nbd_tls_session_new(const NbdTls *tls, const char *hostname, void *opaque,
                                   ssize_t (*receive)(void *opaque, void *buffer, size_t length),
                                   ssize_t (*send)(void *opaque, const void *buffer, size_t length),
                                   GError **err);
