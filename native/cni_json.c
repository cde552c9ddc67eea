/* Theory of operation
 *
 * A network configuration may hold anything that others like; it is the agent that reads it. The plugin has to know two
 * members of the outermost object: where the agent is ("socket"), and in which version to word an error of its own
 * ("cniVersion"). So this walks over the text once, checks the grammar of RFC 8259 to the last byte, and copies those
 * two. It knows where it is by one bit for each object or array that is open, so that no depth of nesting costs stack.
 *
 * As in Go, whose decoder every runtime was written against: names count whatever their case (of ASCII letters), of a
 * name that stands twice the last value counts, null is as if it did not stand there, and a surrogate without its other
 * half becomes U+FFFD. Bytes above 127 are not checked in strings that are walked over: that is for who uses them.
 */

#include "cni_json.h"

#include <stdint.h>
#include <string.h>

static const char REPLACEMENT[] = "\xEF\xBF\xBD"; /* U+FFFD in UTF-8 */

/* Where in the text we are. */
struct cursor {
    const char *at, *end;
    const char *expected; /* what should have stood at `at`; NULL as long as all is well */
};

/* A string that is copied while it is walked over. */
struct copy {
    char *text; /* NULL: not wanted */
    size_t length, room;
    bool is_unusable; /* too long, or with a NUL in it */
};

static bool refuse(struct cursor *cursor, const char *expected)
{
    if (!cursor->expected)
        cursor->expected = expected;
    return false;
}

/* peek() - Return: the byte to come, -1 at the end */
static int peek(const struct cursor *cursor)
{
    return cursor->at < cursor->end ? (unsigned char)*cursor->at : -1;
}

static void skip_space(struct cursor *cursor)
{
    while (cursor->at < cursor->end && memchr(" \t\n\r", *cursor->at, 4))
        cursor->at++;
}

/* take() - walk over one certain byte, if it comes next */
static bool take(struct cursor *cursor, char byte)
{
    if (peek(cursor) != byte)
        return false;
    cursor->at++;
    return true;
}

static bool is_digit(int byte)
{
    return byte >= '0' && byte <= '9';
}

/* fold_case() - of an ASCII letter; locales must not count */
static char fold_case(char letter)
{
    return letter >= 'A' && letter <= 'Z' ? (char)(letter | 0x20) : letter;
}

/* is_named() - Return: whether a name is this one, given in small letters */
static bool is_named(const struct copy *name, const char *wanted)
{
    if (name->is_unusable || name->length != strlen(wanted))
        return false;
    for (size_t i = 0; i < name->length; i++)
        if (fold_case(name->text[i]) != wanted[i])
            return false;
    return true;
}

/* ---- strings ------------------------------------------------------------------------------------------------------- */

static void copy_bytes(struct copy *copy, const char *bytes, size_t count)
{
    if (!copy->text)
        return;
    if (count >= copy->room - copy->length || memchr(bytes, 0, count)) {
        copy->is_unusable = true;
        return;
    }
    memcpy(copy->text + copy->length, bytes, count);
    copy->length += count;
}

/* copy_code() - copy a character by its number, up to U+10FFFF, as UTF-8 (RFC 3629 section 3) */
static void copy_code(struct copy *copy, uint32_t code)
{
    char bytes[4];
    size_t count = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    static const unsigned char marks[] = {0, 0, 0xC0, 0xE0, 0xF0};

    for (size_t i = count; i-- > 1; code >>= 6)
        bytes[i] = (char)(0x80 | (code & 0x3F));
    bytes[0] = (char)(marks[count] | code);
    copy_bytes(copy, bytes, count);
}

/* scan_hex() - walk over the four digits of \uXXXX; Return: their value, or -1 */
static int32_t scan_hex(struct cursor *cursor)
{
    int32_t value = 0;

    for (int i = 0; i < 4; i++, cursor->at++) {
        int byte = peek(cursor);
        int letter = byte | 0x20;

        if (is_digit(byte))
            value = value << 4 | (byte - '0');
        else if (byte >= 0 && letter >= 'a' && letter <= 'f')
            value = value << 4 | (letter - 'a' + 10);
        else {
            refuse(cursor, "a hexadecimal digit");
            return -1;
        }
    }
    return value;
}

/* scan_unicode() - walk over the digits after \u and, where these are half of a character, over the other half */
static bool scan_unicode(struct cursor *cursor, struct copy *copy)
{
    int32_t code = scan_hex(cursor);

    /* Halves without their other half come one after another until something else does. */
    while (code >= 0xD800 && code < 0xDC00 && cursor->end - cursor->at >= 2 && memcmp(cursor->at, "\\u", 2) == 0) {
        cursor->at += 2;
        int32_t second = scan_hex(cursor);

        if (second >= 0xDC00 && second < 0xE000)
            code = 0x10000 + ((code - 0xD800) << 10) + (second - 0xDC00);
        else {
            copy_bytes(copy, REPLACEMENT, 3);
            code = second;
        }
    }
    if (code < 0)
        return false;
    if (code >= 0xD800 && code < 0xE000)
        copy_bytes(copy, REPLACEMENT, 3);
    else
        copy_code(copy, (uint32_t)code);
    return true;
}

static bool scan_escape(struct cursor *cursor, struct copy *copy)
{
    static const char letters[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
    int byte = peek(cursor);
    const char *found = byte > 0 ? strchr(letters, byte) : NULL;

    if (take(cursor, 'u'))
        return scan_unicode(cursor, copy);
    if (!found)
        return refuse(cursor, "one of \"\\/bfnrtu after a backslash");
    cursor->at++;
    copy_bytes(copy, meanings + (found - letters), 1);
    return true;
}

/* scan_string() - walk over a string and copy it
 * @copy:  with a text and room of at least 1; a NUL is put behind
 */
static bool scan_string(struct cursor *cursor, struct copy *copy)
{
    if (!take(cursor, '"'))
        return refuse(cursor, "a string");
    while (!take(cursor, '"')) {
        int byte = peek(cursor);

        if (byte < 0)
            return refuse(cursor, "a quotation mark at the end of a string");
        if (byte < 0x20)
            return refuse(cursor, "no control character in a string");
        if (take(cursor, '\\')) {
            if (!scan_escape(cursor, copy))
                return false;
        } else {
            copy_bytes(copy, cursor->at++, 1);
        }
    }
    if (copy->text)
        copy->text[copy->length] = '\0';
    return true;
}

/* ---- other values -------------------------------------------------------------------------------------------------- */

static bool scan_digits(struct cursor *cursor)
{
    if (!is_digit(peek(cursor)))
        return refuse(cursor, "a digit");
    while (is_digit(peek(cursor)))
        cursor->at++;
    return true;
}

static bool scan_number(struct cursor *cursor)
{
    take(cursor, '-');
    if (!take(cursor, '0') && !scan_digits(cursor))
        return false;
    if (take(cursor, '.') && !scan_digits(cursor))
        return false;
    if (take(cursor, 'e') || take(cursor, 'E')) {
        if (!take(cursor, '+'))
            take(cursor, '-');
        return scan_digits(cursor);
    }
    return true;
}

static bool scan_word(struct cursor *cursor, const char *word)
{
    size_t length = strlen(word);

    if ((size_t)(cursor->end - cursor->at) < length || memcmp(cursor->at, word, length) != 0)
        return refuse(cursor, "a value");
    cursor->at += length;
    return true;
}

/* scan_scalar() - walk over a value that holds no others */
static bool scan_scalar(struct cursor *cursor)
{
    struct copy unwanted = {0};

    switch (peek(cursor)) {
    case '"':
        return scan_string(cursor, &unwanted);
    case 't':
        return scan_word(cursor, "true");
    case 'f':
        return scan_word(cursor, "false");
    case 'n':
        return scan_word(cursor, "null");
    case '-':
        return scan_number(cursor);
    default:
        return is_digit(peek(cursor)) ? scan_number(cursor) : refuse(cursor, "a value");
    }
}

/* scan_name() - walk over a member's name, the colon and the space around them */
static bool scan_name(struct cursor *cursor, struct copy *copy)
{
    skip_space(cursor);
    if (peek(cursor) != '"')
        return refuse(cursor, "a name in quotation marks");
    if (!scan_string(cursor, copy))
        return false;
    skip_space(cursor);
    if (!take(cursor, ':'))
        return refuse(cursor, "a colon after a name");
    skip_space(cursor);
    return true;
}

/* What is open around the cursor: a bit for each, set for an object. */
struct nest {
    uint8_t bits[DEPTH_MAX / 8];
    unsigned depth;
};

static bool nest_is_object(const struct nest *nest)
{
    return nest->bits[(nest->depth - 1) / 8] >> (nest->depth - 1) % 8 & 1;
}

/* open_nest() - walk over { or [ */
static bool open_nest(struct cursor *cursor, struct nest *nest)
{
    if (nest->depth == DEPTH_MAX)
        return refuse(cursor, "no more than 512 objects and arrays in each other");
    uint8_t bit = (uint8_t)(1u << nest->depth % 8), *byte = &nest->bits[nest->depth / 8];

    *byte = (uint8_t)(*cursor->at++ == '{' ? *byte | bit : *byte & ~bit);
    nest->depth++;
    return true;
}

/* close_nests() - after a value: walk over all ends that come next, and over the comma
 *
 * Return: false if something else comes; at the end of the outermost nest, its depth is 0
 */
static bool close_nests(struct cursor *cursor, struct nest *nest)
{
    while (nest->depth) {
        bool is_object = nest_is_object(nest);

        skip_space(cursor);
        if (take(cursor, ','))
            return true;
        if (!take(cursor, is_object ? '}' : ']'))
            return refuse(cursor, is_object ? "a comma or }" : "a comma or ]");
        nest->depth--;
    }
    return true;
}

/* scan_value() - walk over any value, whatever it holds */
static bool scan_value(struct cursor *cursor)
{
    struct nest nest = {.depth = 0};
    struct copy unwanted = {0};

    _Static_assert(DEPTH_MAX % 8 == 0 && DEPTH_MAX == 512, "the sentence of open_nest() says the same");
    do {
        skip_space(cursor);
        if (nest.depth && nest_is_object(&nest) && !scan_name(cursor, &unwanted))
            return false;
        if (peek(cursor) == '{' || peek(cursor) == '[') {
            if (!open_nest(cursor, &nest))
                return false;
            skip_space(cursor);
            if (peek(cursor) != (nest_is_object(&nest) ? '}' : ']'))
                continue;
        } else if (!scan_scalar(cursor)) {
            return false;
        }
        if (!close_nests(cursor, &nest))
            return false;
    } while (nest.depth);
    return true;
}

/* ---- the configuration --------------------------------------------------------------------------------------------- */

/* scan_text() - walk over a value that should be a string
 * @member:  what became of it; as before, if the value is null
 */
static bool scan_text(struct cursor *cursor, enum member *member, char *text, size_t room)
{
    struct copy copy = {.text = text, .room = room};

    if (peek(cursor) == 'n')
        return scan_word(cursor, "null");
    if (peek(cursor) != '"') {
        *member = MEMBER_UNUSABLE;
        return scan_value(cursor);
    }
    if (!scan_string(cursor, &copy))
        return false;
    *member = copy.is_unusable ? MEMBER_UNUSABLE : MEMBER_TEXT;
    return true;
}

static bool scan_member(struct cursor *cursor, struct conf *conf)
{
    char text[16];
    struct copy name = {.text = text, .room = sizeof text};

    if (!scan_name(cursor, &name))
        return false;
    if (is_named(&name, "cniversion"))
        return scan_text(cursor, &conf->version, conf->version_text, sizeof conf->version_text);
    if (is_named(&name, "socket"))
        return scan_text(cursor, &conf->socket, conf->socket_text, sizeof conf->socket_text);
    return scan_value(cursor);
}

static bool scan_object(struct cursor *cursor, struct conf *conf)
{
    skip_space(cursor);
    if (!take(cursor, '{'))
        return refuse(cursor, "{");
    skip_space(cursor);
    if (!take(cursor, '}')) {
        do {
            if (!scan_member(cursor, conf))
                return false;
            skip_space(cursor);
        } while (take(cursor, ','));
        if (!take(cursor, '}'))
            return refuse(cursor, "a comma or }");
    }
    skip_space(cursor);
    return cursor->at == cursor->end || refuse(cursor, "the end");
}

const char *scan_conf(const char *text, size_t bytes, struct conf *conf, size_t *at)
{
    struct cursor cursor = {.at = text, .end = text + bytes};

    memset(conf, 0, sizeof *conf);
    if (scan_object(&cursor, conf))
        return NULL;
    memset(conf, 0, sizeof *conf);
    *at = (size_t)(cursor.at - text);
    return cursor.expected;
}

/* ---- into JSON ----------------------------------------------------------------------------------------------------- */

/* utf8_length() - Return: bytes of the character that a text begins with, 0 if it is none (RFC 3629 section 4) */
static size_t utf8_length(const unsigned char *text, size_t bytes)
{
    unsigned char first = text[0], low = 0x80, high = 0xBF;
    size_t length = first < 0x80 ? 1 : first < 0xC2 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : first < 0xF5 ? 4 : 0;

    if (length > bytes)
        return 0;
    if (first == 0xE0)
        low = 0xA0; /* shorter ones have two bytes */
    if (first == 0xED)
        high = 0x9F; /* surrogates */
    if (first == 0xF0)
        low = 0x90;
    if (first == 0xF4)
        high = 0x8F; /* above U+10FFFF */
    for (size_t i = 1; i < length; i++, low = 0x80, high = 0xBF)
        if (text[i] < low || text[i] > high)
            return 0;
    return length;
}

size_t escape(const char *text, size_t bytes, char *to, size_t room)
{
    static const char digits[] = "0123456789abcdef";
    size_t length = 0;

    while (bytes) {
        unsigned char byte = (unsigned char)text[0];
        size_t taken = utf8_length((const unsigned char *)text, bytes), made = taken;
        char control[] = {'\\', 'u', '0', '0', digits[byte >> 4], digits[byte & 15]}, quoted[] = {'\\', (char)byte};
        const char *form = text;

        if (!taken) {
            form = REPLACEMENT;
            taken = 1;
            made = 3;
        } else if (byte < 0x20 || byte == 0x7F) {
            form = control;
            made = sizeof control;
        } else if (byte == '"' || byte == '\\') {
            form = quoted;
            made = sizeof quoted;
        }
        if (made >= room - length)
            break;
        memcpy(to + length, form, made);
        length += made;
        text += taken;
        bytes -= taken;
    }
    to[length] = '\0';
    return length;
}
