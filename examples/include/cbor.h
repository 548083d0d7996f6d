/* cbor.h: as much CBOR (RFC 8949) as a capsule without a C library needs. Copy it, it stands alone.
 *
 * Writing, into a buffer of yours:
 *
 *     struct cbor_out out = cbor_out(buf, sizeof buf);
 *     cbor_put_map(&out, 1);
 *     cbor_put_text(&out, "n", 1);
 *     cbor_put_uint(&out, 7);
 *     if (cbor_fits(&out)) …                     the item is buf[0 .. out.len)
 *
 * Reading what a receive wrote:
 *
 *     struct envelope envelope;
 *     struct message message;
 *     uint64_t n;
 *     if (envelope_open(&envelope, buf, received))
 *         while (envelope_next(&envelope, &message))
 *             if (cbor_find_uint(message.payload, "n", 1, &n)) …
 *
 * Payloads come from other capsules: whatever their bytes are, nothing here reads outside the range
 * that it was given, and nothing recurses. A reader answers 1, or 0 and has not moved.
 */
#ifndef CBOR_H
#define CBOR_H

#include <stdint.h>

enum cbor_major { CBOR_UINT, CBOR_NEGATIVE, CBOR_BYTES, CBOR_TEXT, CBOR_ARRAY, CBOR_MAP, CBOR_TAG, CBOR_SIMPLE };

#define CBOR_INDEFINITE 31 /* the head's info when the length is not told and a "break" ends the item */

/* ---- Writing -------------------------------------------------------------------------------- */

/* `len` counts on past `cap`, where nothing is written any more: one check at the end is enough. */
struct cbor_out {
    uint8_t *buf;
    uint32_t cap, len;
};

static inline struct cbor_out cbor_out(void *buf, uint32_t cap) {
    return (struct cbor_out){.buf = buf, .cap = cap, .len = 0};
}

static inline int cbor_fits(const struct cbor_out *out) { return out->len <= out->cap; }

static inline void cbor_put_byte(struct cbor_out *out, uint8_t byte) {
    if (out->len < out->cap) out->buf[out->len] = byte;
    out->len++;
}

/* Heads are written in the shortest form, as the deterministic encoding asks. */
static inline void cbor_put_head(struct cbor_out *out, enum cbor_major major, uint64_t value) {
    uint32_t more = value < 24 ? 0 : value <= 0xff ? 1 : value <= 0xffff ? 2 : value <= 0xffffffff ? 4 : 8;
    uint8_t info = more == 0 ? (uint8_t)value : more == 1 ? 24 : more == 2 ? 25 : more == 4 ? 26 : 27;
    cbor_put_byte(out, (uint8_t)(major << 5 | info));
    while (more--) cbor_put_byte(out, (uint8_t)(value >> 8 * more));
}

static inline void cbor_put_uint(struct cbor_out *out, uint64_t value) { cbor_put_head(out, CBOR_UINT, value); }

static inline void cbor_put_int(struct cbor_out *out, int64_t value) {
    if (value < 0) cbor_put_head(out, CBOR_NEGATIVE, ~(uint64_t)value); /* CBOR has -1 - n, which is ~n */
    else cbor_put_head(out, CBOR_UINT, (uint64_t)value);
}

static inline void cbor_put_text(struct cbor_out *out, const char *text, uint32_t len) {
    cbor_put_head(out, CBOR_TEXT, len);
    for (uint32_t i = 0; i < len; i++) cbor_put_byte(out, (uint8_t)text[i]);
}

/* After it come `pairs` times a key and a value. */
static inline void cbor_put_map(struct cbor_out *out, uint32_t pairs) { cbor_put_head(out, CBOR_MAP, pairs); }

/* After it come `items` items. */
static inline void cbor_put_array(struct cbor_out *out, uint32_t items) { cbor_put_head(out, CBOR_ARRAY, items); }

/* ---- Reading -------------------------------------------------------------------------------- */

/* The bytes still to be read. Copying one is how to look ahead. */
struct cbor {
    const uint8_t *at, *end;
};

/* A text inside the buffer that was read: no terminating zero, and gone with the next receive. */
struct cbor_text {
    const char *at;
    uint32_t len;
};

struct cbor_head {
    uint8_t major, info;
    uint64_t value;
};

static inline struct cbor cbor_in(const void *buf, uint32_t len) {
    return (struct cbor){.at = buf, .end = (const uint8_t *)buf + len};
}

static inline uint32_t cbor_left(const struct cbor *in) { return (uint32_t)(in->end - in->at); }

static inline int cbor_read_head(struct cbor *in, struct cbor_head *head) {
    struct cbor from = *in;
    if (from.at == from.end) return 0;
    head->major = *from.at >> 5;
    head->info = *from.at++ & 31;
    head->value = head->info;
    if (head->info >= 24 && head->info < CBOR_INDEFINITE) {
        uint32_t more = head->info <= 27 ? 1u << (head->info - 24) : UINT32_MAX; /* 28 to 30 are reserved */
        if (cbor_left(&from) < more) return 0;
        for (head->value = 0; more; more--) head->value = head->value << 8 | *from.at++;
    }
    *in = from;
    return 1;
}

/* How many items of indefinite length may lie in each other: a place of the stack below for each.
 * Items of definite length may lie in each other without a bound: they are only counted. */
#define CBOR_MAX_OPEN 64

/* Past one whole item. It finds the end; it does not judge (the host passes on well-formed items only). */
static inline int cbor_skip(struct cbor *in) {
    struct cbor from = *in;
    struct cbor_head head;
    uint64_t outer[CBOR_MAX_OPEN]; /* what was left around each open item of indefinite length */
    uint64_t left = 1;             /* items that must still come inside the innermost of them */
    uint32_t open = 0;
    do {
        if (!cbor_read_head(&from, &head)) return 0;
        int indefinite = head.info == CBOR_INDEFINITE;
        if (indefinite && head.major == CBOR_SIMPLE) { /* a break */
            if (open == 0 || left != 0) return 0;
            left = outer[--open];
            continue;
        }
        if (left) left--; /* else it is one more in an open item, which counts none */
        if (indefinite) {
            if (head.major < CBOR_BYTES || head.major == CBOR_TAG || open == CBOR_MAX_OPEN) return 0;
            outer[open++] = left;
            left = 0;
        } else if (head.major == CBOR_TAG) {
            left++;
        } else if (head.major >= CBOR_BYTES && head.major <= CBOR_MAP) {
            if (head.value > cbor_left(&from)) return 0; /* an item takes a byte at least */
            if (head.major <= CBOR_TEXT) from.at += head.value;
            else left += head.major == CBOR_MAP ? 2 * head.value : head.value;
            if (left > cbor_left(&from)) return 0; /* and so this sum can't overflow */
        }
    } while (left || open);
    *in = from;
    return 1;
}

/* The next item as a range of its own. */
static inline int cbor_item(struct cbor *in, struct cbor *item) {
    item->at = in->at;
    if (!cbor_skip(in)) return 0;
    item->end = in->at;
    return 1;
}

/* Past a head of this kind and of definite length; its value is a number, a length or a count. */
static inline int cbor_expect(struct cbor *in, enum cbor_major major, uint64_t *value) {
    struct cbor from = *in;
    struct cbor_head head;
    if (!cbor_read_head(&from, &head) || head.major != major || head.info == CBOR_INDEFINITE) return 0;
    if (major != CBOR_UINT && major != CBOR_NEGATIVE && head.value > cbor_left(&from)) return 0;
    *value = head.value;
    *in = from;
    return 1;
}

static inline int cbor_map(struct cbor *in, uint64_t *pairs) { return cbor_expect(in, CBOR_MAP, pairs); }

static inline int cbor_array(struct cbor *in, uint64_t *items) { return cbor_expect(in, CBOR_ARRAY, items); }

static inline int cbor_uint(struct cbor *in, uint64_t *value) { return cbor_expect(in, CBOR_UINT, value); }

static inline int cbor_int(struct cbor *in, int64_t *value) {
    struct cbor from = *in;
    uint64_t bits;
    int negative = !cbor_expect(&from, CBOR_UINT, &bits);
    if (negative && !cbor_expect(&from, CBOR_NEGATIVE, &bits)) return 0;
    if (bits > INT64_MAX) return 0;
    *value = negative ? -1 - (int64_t)bits : (int64_t)bits;
    *in = from;
    return 1;
}

static inline int cbor_text(struct cbor *in, struct cbor_text *text) {
    uint64_t len;
    if (!cbor_expect(in, CBOR_TEXT, &len)) return 0;
    text->at = (const char *)in->at;
    text->len = (uint32_t)len;
    in->at += len;
    return 1;
}

static inline int cbor_is(struct cbor_text text, const char *other, uint32_t len) {
    if (text.len != len) return 0;
    for (uint32_t i = 0; i < len; i++)
        if (text.at[i] != other[i]) return 0;
    return 1;
}

/* The value of a text key in a map; a range that holds no map has no keys. */
static inline int cbor_find(struct cbor map, const char *key, uint32_t len, struct cbor *value) {
    struct cbor name;
    struct cbor_text text;
    uint64_t pairs;
    if (!cbor_map(&map, &pairs)) return 0;
    while (pairs--) {
        if (!cbor_item(&map, &name) || !cbor_item(&map, value)) return 0;
        if (cbor_text(&name, &text) && cbor_is(text, key, len)) return 1;
    }
    return 0;
}

static inline int cbor_find_uint(struct cbor map, const char *key, uint32_t len, uint64_t *value) {
    struct cbor item;
    return cbor_find(map, key, len, &item) && cbor_uint(&item, value);
}

static inline int cbor_find_int(struct cbor map, const char *key, uint32_t len, int64_t *value) {
    struct cbor item;
    return cbor_find(map, key, len, &item) && cbor_int(&item, value);
}

static inline int cbor_find_text(struct cbor map, const char *key, uint32_t len, struct cbor_text *value) {
    struct cbor item;
    return cbor_find(map, key, len, &item) && cbor_text(&item, value);
}

/* ---- What a receive wrote ------------------------------------------------------------------- */

struct envelope {
    struct cbor messages;
    uint64_t left;            /* messages still to be read */
    uint64_t dropped, lagged; /* lost since the last call: in this subscription's queue, and before it */
};

struct message {
    struct cbor_text topic, source, principal;
    struct cbor payload;
    uint64_t seq, time_ms; /* `seq` is what capsule_ipc_publish_caused() takes as its cause */
};

static inline int envelope_open(struct envelope *envelope, const void *buf, uint32_t len) {
    struct cbor all = cbor_in(buf, len);
    return cbor_find(all, "messages", 8, &envelope->messages) && cbor_array(&envelope->messages, &envelope->left) &&
           cbor_find_uint(all, "dropped", 7, &envelope->dropped) && cbor_find_uint(all, "lagged", 6, &envelope->lagged);
}

/* Answers 0 at the end. A message is read in one pass, and keys that we do not know are passed over. */
static inline int envelope_next(struct envelope *envelope, struct message *message) {
    struct cbor *in = &envelope->messages, value;
    struct cbor_text key;
    uint64_t pairs;
    if (!envelope->left || !cbor_map(in, &pairs)) return 0;
    *message = (struct message){0};
    while (pairs--) {
        if (!cbor_text(in, &key) || !cbor_item(in, &value)) return 0;
        if (cbor_is(key, "topic", 5)) cbor_text(&value, &message->topic);
        else if (cbor_is(key, "payload", 7)) message->payload = value;
        else if (cbor_is(key, "source", 6)) cbor_text(&value, &message->source);
        else if (cbor_is(key, "principal", 9)) cbor_text(&value, &message->principal);
        else if (cbor_is(key, "seq", 3)) cbor_uint(&value, &message->seq);
        else if (cbor_is(key, "time", 4)) cbor_uint(&value, &message->time_ms);
    }
    envelope->left--;
    return 1;
}

#endif
