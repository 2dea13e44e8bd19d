/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a type of character device implements; chardevs.c lists them. */
#pragma once

#include "machine/chardev/chardev.h"

typedef struct ChardevType {
    const char *name;
    const char *summary;
    const char *const *options; /* names, NULL-terminated; others are refused */
    /* Sets in_fd, out_fd (or listen_fd) and path; on failure leaves what close can clean. */
    bool (*open)(Chardev *c, const MachineItem *item, GError **err);
    void (*close)(Chardev *c); /* before the descriptors are closed; may be NULL */
    /* Looks at bytes from the peer before the device does; returns how many to keep. May be NULL.
     */
    size_t (*filter)(Chardev *c, uint8_t *data, size_t size);
    void (*peer_left)(Chardev *c); /* types with listen_fd: wait for the next one */
} ChardevType;

/* Null-terminated. */
extern const ChardevType *const chardev_types[];
extern const ChardevType chardev_type_stdio, chardev_type_file, chardev_type_unix, chardev_type_pty,
    chardev_type_null, chardev_type_fd;

#define CHARDEV_OUTPUT_MAX (64 * 1024)
#define CHARDEV_INPUT_MAX  4096

struct Chardev {
    const ChardevType *type;
    Machine *machine;
    char *id;
    char *path;

    const ChardevUser *user;
    void *user_opaque;
    bool connected;

    int in_fd, out_fd;  /* -1: none; may be the same */
    bool owns_fds;      /* close them */
    bool out_socket;    /* send(2) instead of write(2) */
    bool out_may_block; /* blocking descriptor: ask poll(2) first */
    bool in_eof;        /* the peer will send no more */
    bool in_terminal;   /* keep reading when full, for the escape key */
    int listen_fd;      /* unix: waits for the next peer */
    int aux_fd;         /* pty: our own slave */
    bool owns_path;     /* unlink it when freed */
    GSource *in_watch, *listen_watch;
    bool in_watch_full; /* in_watch waits for the peer's end only: no room for its input */
    bool in_hung_up;    /* the peer left, but some of its input is not read yet */

    uint8_t input[CHARDEV_INPUT_MAX]; /* read from the peer, not yet taken by the user */
    size_t input_size;
    bool delivering;

    GMutex out_lock; /* guards what follows, and out_fd; taken after the machine lock */
    GByteArray *output;
    GSource *out_watch;
};

/* For types: the connection state changed (after the descriptors were set or cleared). */
void chardev_set_connected(Chardev *c, bool connected);
/* For peer_left's listener: leaves a peer that has hung up; true if there is none now. */
bool chardev_leave_hung_up(Chardev *c);
/* Starts or stops reading, as the state asks for. */
void chardev_update_input(Chardev *c);
bool chardev_bool_option(const MachineItem *item, const char *name, bool fallback, bool *value,
                         GError **err);
