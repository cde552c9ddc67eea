/* Of a network configuration, the two values that the plugin itself needs; and strings on their way into JSON. */

#ifndef MUSLIN_CNI_JSON_H
#define MUSLIN_CNI_JSON_H

#include <stdbool.h>
#include <stddef.h>

#define DEPTH_MAX 512       /* objects and arrays in each other; more is no configuration of anybody's */
#define VERSION_MAX_BYTES 32 /* with the final NUL, as is the next */
#define SOCKET_MAX_BYTES 108 /* sun_path, unix(7) */

/* A value that was looked for. */
enum member {
    MEMBER_ABSENT,   /* or null */
    MEMBER_TEXT,     /* found, and copied */
    MEMBER_UNUSABLE, /* no string, too long for its place, or with a NUL in it */
};

/* What a network configuration says. */
struct conf {
    enum member version, socket;
    char version_text[VERSION_MAX_BYTES];
    char socket_text[SOCKET_MAX_BYTES];
};

/* scan_conf() - check that a text is one JSON object, and take what is needed from it
 * @text:   the text
 * @bytes:  its length
 * @conf:   set in any case; everything is absent on failure
 * @at:     set on failure, to the byte that cannot be right
 *
 * Return: NULL, or what was expected at that byte
 */
const char *scan_conf(const char *text, size_t bytes, struct conf *conf, size_t *at);

/* escape() - write a string's bytes as they stand between quotation marks in JSON (RFC 8259 section 7)
 * @text:   any bytes; what is no UTF-8 becomes U+FFFD
 * @bytes:  how many
 * @to:     takes the result and a final NUL
 * @room:   of @to, at least 1; what does not fit is left out, whole characters at a time
 *
 * Return: length of the result
 */
size_t escape(const char *text, size_t bytes, char *to, size_t room);

#endif
