/* libFuzzer: the scanner takes exactly what a naive reader of RFC 8259 takes, and what is escaped comes back. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "cni_json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* ---- the naive reader: each function returns what is left, or NULL where the text is none -------------------------- */

static const char *end; /* of the text */

static const char *read_value(const char *at, int depth);

static const char *after_space(const char *at)
{
    while (at < end && (*at == ' ' || *at == '\t' || *at == '\n' || *at == '\r'))
        at++;
    return at;
}

static const char *read_string(const char *at)
{
    if (at == end || *at++ != '"')
        return NULL;
    for (; at < end && *at != '"'; at++) {
        if ((unsigned char)*at < 0x20)
            return NULL;
        if (*at != '\\')
            continue;
        if (++at == end || !memchr("\"\\/bfnrtu", *at, 9))
            return NULL;
        for (int i = 0; *at == 'u' && i < 4; i++)
            if (at + i + 1 >= end || !memchr("0123456789abcdefABCDEF", at[i + 1], 22))
                return NULL;
    }
    return at < end ? at + 1 : NULL;
}

static const char *read_digits(const char *at)
{
    const char *start = at;

    while (at < end && *at >= '0' && *at <= '9')
        at++;
    return at == start ? NULL : at;
}

static const char *read_number(const char *at)
{
    at += at < end && *at == '-';
    at = at < end && *at == '0' ? at + 1 : read_digits(at);
    if (at && at < end && *at == '.')
        at = read_digits(at + 1);
    if (at && at < end && (*at == 'e' || *at == 'E')) {
        at++;
        at = read_digits(at + (at < end && (*at == '+' || *at == '-')));
    }
    return at;
}

static const char *read_members(const char *at, int depth, char last)
{
    at = after_space(at);
    if (at < end && *at == last)
        return at + 1;
    for (;;) {
        if (last == '}') {
            at = read_string(after_space(at));
            if (!at || (at = after_space(at)) == end || *at++ != ':')
                return NULL;
        }
        at = read_value(after_space(at), depth);
        if (!at || (at = after_space(at)) == end)
            return NULL;
        if (*at == last)
            return at + 1;
        if (*at++ != ',')
            return NULL;
    }
}

static const char *read_value(const char *at, int depth)
{
    static const char *const words[] = {"true", "false", "null"};

    if (at == end)
        return NULL;
    if (*at == '{' || *at == '[')
        /* The outermost object of a configuration is not one of the 512. */
        return depth > DEPTH_MAX ? NULL : read_members(at + 1, depth + 1, *at == '{' ? '}' : ']');
    if (*at == '"')
        return read_string(at);
    for (size_t i = 0; i < 3; i++)
        if ((size_t)(end - at) >= strlen(words[i]) && memcmp(at, words[i], strlen(words[i])) == 0)
            return at + strlen(words[i]);
    return read_number(at);
}

static int is_conf(const char *text, size_t bytes)
{
    end = text + bytes;
    text = after_space(text);
    if (text == end || *text != '{')
        return 0;
    text = read_value(text, 0);
    return text && after_space(text) == end;
}

/* ---- the promises -------------------------------------------------------------------------------------------------- */

static void check_scan(const char *text, size_t bytes)
{
    struct conf conf;
    size_t at = SIZE_MAX;
    const char *expected = scan_conf(text, bytes, &conf, &at);

    if ((expected == NULL) != is_conf(text, bytes))
        abort();
    if (expected ? at > bytes || conf.version || conf.socket : at != SIZE_MAX)
        abort();
    if (conf.version == MEMBER_TEXT && strnlen(conf.version_text, VERSION_MAX_BYTES) == VERSION_MAX_BYTES)
        abort();
    if (conf.socket == MEMBER_TEXT && strnlen(conf.socket_text, SOCKET_MAX_BYTES) == SOCKET_MAX_BYTES)
        abort();
}

/* check_escape() - what is escaped stands in JSON as one string, and escaped again after it was read it is the same */
static void check_escape(const char *text, size_t bytes)
{
    char escaped[600], again[600], document[700];
    size_t at, length = escape(text, bytes < 90 ? bytes : 90, escaped, sizeof escaped);
    struct conf conf;

    memcpy(document, "{\"SOCKET\":\"", 11);
    memcpy(document + 11, escaped, length);
    memcpy(document + 11 + length, "\"}", 2);
    if (scan_conf(document, length + 13, &conf, &at) || !conf.socket)
        abort();
    if (conf.socket == MEMBER_TEXT &&
        (escape(conf.socket_text, strlen(conf.socket_text), again, sizeof again) != length ||
         memcmp(again, escaped, length) != 0))
        abort();
    size_t room = bytes % 40 + 1;
    length = escape(text, bytes, again, room);
    if (length >= room || again[length] != '\0')
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    check_scan((const char *)data, size);
    check_escape((const char *)data, size);
    return 0;
}
