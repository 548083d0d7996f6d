/* guest.h: what every example needs besides the ABI: literals, log lines, waiting, giving up. */
#ifndef GUEST_H
#define GUEST_H

#include <stdarg.h>
#include <stdint.h>

#include "capsule.h"

/* A string literal and its length: two arguments, as the host functions take them. */
#define TEXT(literal) ("" literal), (uint32_t)(sizeof(literal) - 1)

#define NS_PER_MS 1000000

/* Longer lines are cut. Room for a refusal, which quotes a topic (256 bytes) and grants. */
#define LINE_BYTES 1024

/* Writes a log line. Of printf it knows %s, %.*s, %u and %d, and the compiler checks the arguments. */
__attribute__((format(printf, 2, 3))) static inline void say(uint32_t level, const char *format, ...) {
    char line[LINE_BYTES];
    uint32_t len = 0;
    va_list args;
    va_start(args, format);
    for (; *format; format++) {
        char digits[12];
        const char *text = format;
        uint32_t size = 1;
        if (format[0] == '%' && format[1] == 's') {
            text = va_arg(args, const char *);
            for (size = 0; text[size];) size++;
            format++;
        } else if (format[0] == '%' && format[1] == '.') { /* .*s: a length, then a text without a zero */
            size = va_arg(args, uint32_t);
            text = va_arg(args, const char *);
            format += 3;
        } else if (format[0] == '%') {
            uint32_t number = va_arg(args, uint32_t), at = sizeof digits;
            int negative = *++format == 'd' && (int32_t)number < 0;
            if (negative) number = 0 - number;
            do digits[--at] = (char)('0' + number % 10);
            while (number /= 10);
            if (negative) digits[--at] = '-';
            text = digits + at;
            size = sizeof digits - at;
        }
        for (uint32_t i = 0; i < size && len < LINE_BYTES; i++) line[len++] = text[i];
    }
    va_end(args);
    capsule_log(level, line, len);
}

/* Logs the sentence that the host left for the last refused call: the rule, and the value that broke it. */
static inline void say_refusal(uint32_t level, const char *what) {
    char sentence[LINE_BYTES];
    int32_t len = capsule_error_message(sentence, sizeof sentence);
    say(level, "%s: %.*s", what, len > 0 ? len : 0, sentence);
}

/* For what can't go on: a wrong manifest, a message larger than the buffer. The trap is a failure, so
 * that the supervisor restarts this capsule; returning from run() would count as "has done its work". */
_Noreturn static inline void give_up(const char *what) {
    say_refusal(CAPSULE_LOG_ERROR, what);
    __builtin_trap();
}

/* Subscribes to what the manifest grants. */
static inline uint32_t subscribe(const char *pattern, uint32_t len) {
    int32_t handle = capsule_ipc_subscribe(pattern, len);
    if (handle < 0) give_up("cannot subscribe");
    return (uint32_t)handle;
}

/* Bytes received, or -CAPSULE_ECANCELED: then return from run() at once. */
static inline int32_t receive(uint32_t handle, uint32_t timeout_ms, void *buf, uint32_t cap) {
    int32_t received = capsule_ipc_recv(handle, timeout_ms, buf, cap);
    if (received < 0 && received != -CAPSULE_ECANCELED) give_up("cannot receive");
    return received;
}

/* Waits until capsule_monotonic_ns() reaches `due`; answers 0, or -CAPSULE_ECANCELED. There is no sleep in
 * the ABI, because whoever waits must hear that it is being stopped: one waits in a receive. What arrives on
 * this handle meanwhile is thrown away. */
static inline int32_t wait_until(uint32_t handle, int64_t due) {
    static uint8_t scratch[4096];
    for (int64_t left; (left = due - capsule_monotonic_ns()) > 0;)
        if (receive(handle, (uint32_t)(left / NS_PER_MS) + 1, scratch, sizeof scratch) < 0) return -CAPSULE_ECANCELED;
    return 0;
}

static inline int32_t wait_ms(uint32_t handle, uint32_t ms) {
    return wait_until(handle, capsule_monotonic_ns() + (int64_t)ms * NS_PER_MS);
}

#endif
