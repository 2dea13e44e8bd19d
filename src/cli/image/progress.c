/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* How far a long operation is, and the wish to end it. */
#include "cli/image/image.h"

#include <signal.h>
#include <stdio.h>

/* Percent between two lines of -p. */
#define STEP 1.0

static struct {
    bool show;
    double current, printed;
} state;

static volatile sig_atomic_t interrupted, asked;

static void note(int signal_number)
{
    if (signal_number == SIGUSR1)
        asked = 1;
    else
        interrupted = 1;
}

static void catch_signals(void)
{
    static const int caught[] = {SIGUSR1, SIGINT, SIGTERM};
    struct sigaction action = {.sa_handler = note, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < G_N_ELEMENTS(caught); i++)
        sigaction(caught[i], &action, NULL);
}

static void print(FILE *where, const char *end)
{
    fprintf(where, "    (%3.2f/100%%)%s", state.current, end);
    fflush(where);
}

void image_progress_begin(bool show)
{
    state.show = show;
    state.current = 0;
    state.printed = 0;
    catch_signals();
    if (show)
        print(stdout, "\r");
}

bool image_progress_step(void *opaque, uint64_t done, uint64_t total)
{
    state.current = total ? 100.0 * (double)done / (double)total : 100.0;
    if (asked) {
        asked = 0;
        print(stderr, "\n");
    }
    if (state.show && (state.current - state.printed > STEP || state.current < state.printed)) {
        state.printed = state.current;
        print(stdout, "\r");
    }
    return !interrupted;
}

void image_progress_end(bool success)
{
    if (!state.show)
        return;
    if (success) {
        state.current = 100;
        print(stdout, "\r");
    }
    printf("\n");
    state.show = false;
}

bool image_interrupted(void)
{
    return interrupted != 0;
}
