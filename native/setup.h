/* From words to open devices. */

#ifndef MUSLIN_SETUP_H
#define MUSLIN_SETUP_H

#include "tunnel.h"

#define ARGUMENT_PEERS_MAX 8192

/* What the command line says. */
struct arguments {
    const char *device, *peers_path;
    union endpoint listen;
    const char *peers[ARGUMENT_PEERS_MAX];
    unsigned peers_count;
    int predecessor; /* a process number, 0 for none */
    bool is_plain, wants_help;
};

bool parse_arguments(int count, char **words, struct arguments *arguments, char *error);
bool take_over(struct tunnel *tunnel, int predecessor);
bool open_device(struct tunnel *tunnel);
bool open_underlay(struct tunnel *tunnel);
int device_mtu(const struct tunnel *tunnel);

#endif
