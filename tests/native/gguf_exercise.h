/* For the test and the fuzzer of the GGUF reader: opens a file made of bytes in memory, and uses everything that an
 * opened file hands out, so that AddressSanitizer sees each access. What must hold of any file is required here. */
#ifndef BEE_TESTS_GGUF_EXERCISE_H
#define BEE_TESTS_GGUF_EXERCISE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* memfd_create */
#endif

#include "file/gguf.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Ends the process, which a fuzzer reports as a crash. */
#define REQUIRE(condition) \
    ((condition) ? (void)0 \
                 : (fprintf(stderr, "%s:%d: required: %s\n", __FILE__, __LINE__, #condition), fflush(NULL), abort()))

static inline bee_file *open_bytes(const void *bytes, size_t size, bee_error *error) {
    int descriptor = memfd_create("gguf", MFD_CLOEXEC);
    REQUIRE(descriptor >= 0);
    for (size_t written = 0; written < size;) {
        ssize_t step = write(descriptor, (const char *)bytes + written, size - written);
        REQUIRE(step > 0);
        written += (size_t)step;
    }
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor);
    bee_file *file = bee_file_open(path, error);
    close(descriptor);
    return file;
}

static inline uint64_t sum_bytes(const void *bytes, uint64_t size) {
    uint64_t sum = 0;
    for (uint64_t i = 0; i < size; i++) sum += ((const uint8_t *)bytes)[i];
    return sum;
}

/* A NUL-terminated copy, for the functions that look up by name. */
static inline char *copy_text(const char *text, uint64_t length) {
    char *copy = malloc(length + 1);
    REQUIRE(copy);
    memcpy(copy, text, length);
    copy[length] = '\0';
    return copy;
}

static inline void require_sound_error(bee_status status, const bee_error *error) {
    if (status == BEE_OK) return;
    REQUIRE(error->status == status);
    size_t length = strnlen(error->message, sizeof error->message);
    REQUIRE(length > 0 && length < sizeof error->message);
    for (size_t i = 0; i < length; i++) REQUIRE((unsigned char)error->message[i] >= 0x20);
}

static inline uint64_t exercise_metadata(const bee_file *file, uint64_t index) {
    bee_error error;
    bee_metadata value, found;
    REQUIRE(bee_file_metadata(file, index, &value, &error) == BEE_OK);
    REQUIRE(value.key_length > 0 && value.size <= bee_file_size(file));
    REQUIRE(value.type == BEE_VALUE_ARRAY || (value.count == 1 && value.element_type == value.type));
    REQUIRE(value.element_type != BEE_VALUE_ARRAY);
    uint64_t sum = sum_bytes(value.data, value.size);
    if (value.element_type == BEE_VALUE_STRING) {
        const uint8_t *at = value.data, *end = at + value.size;
        for (uint64_t i = 0; i < value.count; i++) {
            uint64_t length;
            REQUIRE((uint64_t)(end - at) >= sizeof length);
            memcpy(&length, at, sizeof length);
            REQUIRE(length <= (uint64_t)(end - at) - sizeof length);
            at += sizeof length + length;
        }
        REQUIRE(at == end);
    }
    char *key = copy_text(value.key, value.key_length);
    REQUIRE(strlen(key) == value.key_length);
    REQUIRE(gguf_find(file, key, &found) && found.data == value.data && found.key == value.key);
    int64_t whole = 0;
    double real = 0;
    bool flag = false;
    char text[64] = "";
    int32_t numbers[8];
    int count = 0;
    bee_status status = gguf_int(file, key, true, -1000, 1000, &whole, &error);
    require_sound_error(status, &error);
    REQUIRE(status != BEE_OK || (whole >= -1000 && whole <= 1000));
    status = gguf_float(file, key, true, &real, &error);
    require_sound_error(status, &error);
    REQUIRE(isfinite(real));
    status = gguf_bool(file, key, true, &flag, &error);
    require_sound_error(status, &error);
    status = gguf_string(file, key, true, text, sizeof text, &error);
    require_sound_error(status, &error);
    REQUIRE(status != BEE_OK || strlen(text) + 8 == value.size);
    status = gguf_ints(file, key, true, numbers, 8, &count, &error);
    require_sound_error(status, &error);
    REQUIRE(status != BEE_OK || (count >= 0 && count <= 8 && (uint64_t)count == value.count));
    free(key);
    return sum;
}

static inline uint64_t exercise_tensor(const bee_file *file, uint64_t index) {
    bee_error error;
    bee_tensor_info info;
    REQUIRE(bee_file_tensor(file, index, &info, &error) == BEE_OK);
    REQUIRE(info.type_name && *info.type_name);
    REQUIRE(info.n_dimensions >= 1 && info.n_dimensions <= 4);
    REQUIRE(info.offset <= bee_file_size(file) && info.size <= bee_file_size(file) - info.offset);
    char *name = copy_text(info.name, info.name_length);
    REQUIRE(strlen(name) == info.name_length && gguf_has_tensor(file, name));
    Tensor tensor;
    uint64_t sum = 0;
    bee_status status = gguf_tensor(file, name, &tensor, &error);
    require_sound_error(status, &error);
    if (status == BEE_OK) {
        REQUIRE(tensor.name == info.name && tensor.size == info.size && tensor.size > 0);
        REQUIRE(tensor.columns >= 1 && tensor.rows >= 1 && tensor.rows <= INT64_MAX / tensor.columns);
        REQUIRE(tensor.rows == tensor.shape[1] * tensor.shape[2] * tensor.shape[3]);
        REQUIRE(!tensor.data && tensor.holder && tensor.offset == info.offset);
        uint8_t *data = malloc(tensor.size);
        REQUIRE(data && gguf_read(&tensor, data, &error) == BEE_OK);
        sum = sum_bytes(data, tensor.size);
        free(data);
    } else {
        REQUIRE(status == BEE_ERROR_UNSUPPORTED);
    }
    free(name);
    return sum;
}

/* Uses all of an opened file. The sum keeps the reads from being optimised away. */
static inline uint64_t exercise(const bee_file *file) {
    uint64_t sum = 0, tokens;
    for (uint64_t i = 0; i < bee_file_metadata_count(file); i++) sum += exercise_metadata(file, i);
    for (uint64_t i = 0; i < bee_file_tensor_count(file); i++) sum += exercise_tensor(file, i);
    bee_metadata value;
    bee_tensor_info info;
    REQUIRE(bee_file_metadata(file, bee_file_metadata_count(file), &value, NULL) == BEE_ERROR_ARGUMENT);
    REQUIRE(bee_file_tensor(file, bee_file_tensor_count(file), &info, NULL) == BEE_ERROR_ARGUMENT);
    return sum + gguf_vocabulary_hash(file, &tokens);
}

/* Opens any bytes, and uses the file if they are one; gives the status of opening. */
static inline bee_status exercise_bytes(const void *bytes, size_t size) {
    bee_error error = {BEE_OK, ""};
    bee_file *file = open_bytes(bytes, size, &error);
    if (!file) {
        REQUIRE(error.status != BEE_OK);
        require_sound_error(error.status, &error);
        return error.status;
    }
    static volatile uint64_t sink;
    sink = exercise(file);
    (void)sink;
    bee_file_close(file);
    return BEE_OK;
}

#endif
