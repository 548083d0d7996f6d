/* capsule.h: the host functions of capsuled's guest ABI, version 1.
 * Generated from proto/abi.py by scripts/generate; do not edit.
 *
 * Every function returns zero, a count or a handle on success and a negated WASI errno on refusal
 * (-CAPSULE_E…); capsule_error_message() then tells the rule and the value in a sentence.
 * Text is UTF-8 with a length and no terminating zero. Payloads are one CBOR item (RFC 8949).
 */
#ifndef CAPSULE_H
#define CAPSULE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define CAPSULE_ABI_VERSION 1
#define CAPSULE_IMPORT(name) __attribute__((import_module("capsule"), import_name(name)))
#define CAPSULE_EXPORT(name) __attribute__((export_name(name), visibility("default")))

/* Refusals, to be compared with a negated result. */
#define CAPSULE_EAGAIN 6
#define CAPSULE_EBADF 8
#define CAPSULE_EBADMSG 9
#define CAPSULE_ECANCELED 11
#define CAPSULE_ECONNREFUSED 14
#define CAPSULE_ECONNRESET 15
#define CAPSULE_EDQUOT 19
#define CAPSULE_EFAULT 21
#define CAPSULE_EILSEQ 25
#define CAPSULE_EINVAL 28
#define CAPSULE_EMFILE 33
#define CAPSULE_EMSGSIZE 35
#define CAPSULE_ENAMETOOLONG 37
#define CAPSULE_ENOBUFS 42
#define CAPSULE_ENOENT 44
#define CAPSULE_ENOSYS 52
#define CAPSULE_EPERM 63
#define CAPSULE_ESPIPE 70
#define CAPSULE_ETIMEDOUT 73
#define CAPSULE_ENOTCAPABLE 76

/* Levels of capsule_log(). */
#define CAPSULE_LOG_TRACE 0
#define CAPSULE_LOG_DEBUG 1
#define CAPSULE_LOG_INFO 2
#define CAPSULE_LOG_WARN 3
#define CAPSULE_LOG_ERROR 4

/* Returns 0. */
CAPSULE_IMPORT("ipc_publish")
int32_t capsule_ipc_publish(const char *topic, uint32_t topic_len, const void *payload, uint32_t payload_len);

/* Returns 0; `cause` is the `seq` of a received message, whose principal is carried on. */
CAPSULE_IMPORT("ipc_publish_caused")
int32_t capsule_ipc_publish_caused(const char *topic, uint32_t topic_len, const void *payload, uint32_t payload_len, uint64_t cause);

/* Returns a handle, greater than 0, on which capsule_ipc_recv() gets the one answer, or its failure; then it is gone. */
CAPSULE_IMPORT("ipc_request")
int32_t capsule_ipc_request(const char *topic, uint32_t topic_len, const void *payload, uint32_t payload_len, uint32_t timeout_ms);

/* Returns 0; `request` is the `seq` of a message that has `request`: true. */
CAPSULE_IMPORT("ipc_reply")
int32_t capsule_ipc_reply(uint64_t request, const void *payload, uint32_t payload_len);

/* Returns 0; its sender gets -CAPSULE_ECONNREFUSED and this reason. */
CAPSULE_IMPORT("ipc_decline")
int32_t capsule_ipc_decline(uint64_t request, const char *reason, uint32_t reason_len);

/* Returns a handle, greater than 0. */
CAPSULE_IMPORT("ipc_subscribe")
int32_t capsule_ipc_subscribe(const char *pattern, uint32_t pattern_len);

/* Returns 0. */
CAPSULE_IMPORT("ipc_unsubscribe")
int32_t capsule_ipc_unsubscribe(uint32_t handle);

/* Returns bytes of the envelope; never blocks. */
CAPSULE_IMPORT("ipc_poll")
int32_t capsule_ipc_poll(uint32_t handle, void *buf, uint32_t cap);

/* Returns bytes of the envelope, after a message, the timeout (60 000 ms at most) or -CAPSULE_ECANCELED. */
CAPSULE_IMPORT("ipc_recv")
int32_t capsule_ipc_recv(uint32_t handle, uint32_t timeout_ms, void *buf, uint32_t cap);

/* Returns bytes of a CBOR list of {handle_id, action, topic} written. */
CAPSULE_IMPORT("ipc_interceptors")
int32_t capsule_ipc_interceptors(void *buf, uint32_t cap);

/* Returns bytes of the CBOR item from the manifest's [config] written. */
CAPSULE_IMPORT("config_get")
int32_t capsule_config_get(const char *key, uint32_t key_len, void *buf, uint32_t cap);

/* Returns bytes of the sentence of the last refusal written; 0 if none. */
CAPSULE_IMPORT("error_message")
int32_t capsule_error_message(void *buf, uint32_t cap);

/* Returns bytes that the last -CAPSULE_ENOBUFS asked for. */
CAPSULE_IMPORT("needed")
int32_t capsule_needed(void);

/* Returns 0; level 0 trace … 4 error. */
CAPSULE_IMPORT("log")
int32_t capsule_log(uint32_t level, const char *text, uint32_t text_len);

/* Returns milliseconds since the Unix epoch. */
CAPSULE_IMPORT("clock_ms")
int64_t capsule_clock_ms(void);

/* Returns nanoseconds of a clock that never steps back. */
CAPSULE_IMPORT("monotonic_ns")
int64_t capsule_monotonic_ns(void);

/* Returns 0. */
CAPSULE_IMPORT("random")
int32_t capsule_random(void *buf, uint32_t len);

/* Returns 0; says that this capsule is ready to serve. */
CAPSULE_IMPORT("ready")
int32_t capsule_ready(void);

/* Returns 0 while it may run, else milliseconds left until it is killed, at least 1. */
CAPSULE_IMPORT("cancelled")
int32_t capsule_cancelled(void);

#ifdef __cplusplus
}
#endif

#endif
