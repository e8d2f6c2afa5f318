/* Builds GGUF files in memory, part by part, sound or not. */
#ifndef BEE_TESTS_GGUF_BUILDER_H
#define BEE_TESTS_GGUF_BUILDER_H

#include "gguf_exercise.h"

typedef struct Bytes {
    uint8_t *data;
    size_t size, capacity;
} Bytes;

static inline void put(Bytes *bytes, const void *data, size_t size) {
    if (bytes->size + size > bytes->capacity) {
        bytes->capacity = (bytes->size + size) * 2;
        bytes->data = realloc(bytes->data, bytes->capacity);
        REQUIRE(bytes->data);
    }
    if (size > 0) memcpy(bytes->data + bytes->size, data, size);
    bytes->size += size;
}

static inline void put_u8(Bytes *bytes, uint8_t value) { put(bytes, &value, sizeof value); }
static inline void put_u32(Bytes *bytes, uint32_t value) { put(bytes, &value, sizeof value); }
static inline void put_u64(Bytes *bytes, uint64_t value) { put(bytes, &value, sizeof value); }

static inline void put_string(Bytes *bytes, const char *text) {
    put_u64(bytes, strlen(text));
    put(bytes, text, strlen(text));
}

static inline void put_zeros(Bytes *bytes, size_t count) {
    for (size_t i = 0; i < count; i++) put_u8(bytes, 0);
}

static inline void put_padding(Bytes *bytes, size_t alignment) {
    while (bytes->size % alignment != 0) put_u8(bytes, 0);
}

static inline Bytes begin(uint64_t tensors, uint64_t metadata) {
    Bytes bytes = {0};
    put(&bytes, "GGUF", 4);
    put_u32(&bytes, 3);
    put_u64(&bytes, tensors);
    put_u64(&bytes, metadata);
    return bytes;
}

static inline void put_key(Bytes *bytes, const char *key, bee_value_type type) {
    put_string(bytes, key);
    put_u32(bytes, type);
}

static inline void put_value(Bytes *bytes, const char *key, bee_value_type type, const void *value, size_t size) {
    put_key(bytes, key, type);
    put(bytes, value, size);
}

#define PUT_VALUE(bytes, key, type, c_type, value) put_value((bytes), (key), (type), &(c_type){value}, sizeof(c_type))

static inline void put_text_value(Bytes *bytes, const char *key, const char *text) {
    put_key(bytes, key, BEE_VALUE_STRING);
    put_string(bytes, text);
}

static inline void put_array_head(Bytes *bytes, const char *key, bee_value_type element_type, uint64_t count) {
    put_key(bytes, key, BEE_VALUE_ARRAY);
    put_u32(bytes, element_type);
    put_u64(bytes, count);
}

static inline void put_texts(Bytes *bytes, const char *key, const char *const *texts, uint64_t count) {
    put_array_head(bytes, key, BEE_VALUE_STRING, count);
    for (uint64_t i = 0; i < count; i++) put_string(bytes, texts[i]);
}

static inline void put_tensor(Bytes *bytes, const char *name, uint32_t dimensions, const uint64_t *shape, uint32_t type,
                              uint64_t offset) {
    put_string(bytes, name);
    put_u32(bytes, dimensions);
    for (uint32_t i = 0; i < dimensions; i++) put_u64(bytes, shape[i]);
    put_u32(bytes, type);
    put_u64(bytes, offset);
}

#endif
