/* Tests of the GGUF reader: what it makes of sound files, and that every kind of damage gives an error that names it.
 */
#define _GNU_SOURCE

#include "check.h"
#include "file/gguf.h"
#include "file/tensor_types.h"
#include "gguf_builder.h"
#include "gguf_exercise.h"

#include <dirent.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- building files --------------------------------------------------------------------------------- */

/* A file with one F32 tensor of 8 elements and `metadata` entries that the caller adds before calling `end_simple`. */
static Bytes begin_simple(uint64_t metadata) { return begin(1, metadata); }

static void end_simple(Bytes *bytes) {
    put_tensor(bytes, "weight", 1, (uint64_t[]){8}, TYPE_F32, 0);
    put_padding(bytes, 32);
    put_zeros(bytes, 32);
}

/* A file with a bit of everything, whose last byte is the last tensor's. */
static Bytes sample_file(void) {
    Bytes bytes = begin(4, 18);
    put_text_value(&bytes, "general.architecture", "llama");
    PUT_VALUE(&bytes, "general.alignment", BEE_VALUE_UINT32, uint32_t, 64);
    PUT_VALUE(&bytes, "test.u8", BEE_VALUE_UINT8, uint8_t, 200);
    PUT_VALUE(&bytes, "test.i8", BEE_VALUE_INT8, int8_t, -100);
    PUT_VALUE(&bytes, "test.u16", BEE_VALUE_UINT16, uint16_t, 60000);
    PUT_VALUE(&bytes, "test.i16", BEE_VALUE_INT16, int16_t, -30000);
    PUT_VALUE(&bytes, "test.u32", BEE_VALUE_UINT32, uint32_t, 4000000000u);
    PUT_VALUE(&bytes, "test.i32", BEE_VALUE_INT32, int32_t, -2000000000);
    PUT_VALUE(&bytes, "test.u64", BEE_VALUE_UINT64, uint64_t, UINT64_MAX);
    PUT_VALUE(&bytes, "test.i64", BEE_VALUE_INT64, int64_t, INT64_MIN);
    PUT_VALUE(&bytes, "test.f32", BEE_VALUE_FLOAT32, float, 1.5f);
    PUT_VALUE(&bytes, "test.f64", BEE_VALUE_FLOAT64, double, 0.1);
    PUT_VALUE(&bytes, "test.bool", BEE_VALUE_BOOL, uint8_t, 1);
    put_texts(&bytes, "tokenizer.ggml.tokens", (const char *const[]){"a", "", "\xC4\xA0the", "<|end|>"}, 4);
    put_array_head(&bytes, "test.ints", BEE_VALUE_INT16, 3);
    put(&bytes, (int16_t[]){1, -2, 300}, 6);
    put_array_head(&bytes, "test.flags", BEE_VALUE_BOOL, 3);
    put(&bytes, (uint8_t[]){1, 0, 1}, 3);
    put_array_head(&bytes, "test.empty", BEE_VALUE_FLOAT32, 0);
    put_array_head(&bytes, "test.longs", BEE_VALUE_UINT64, 2);
    put(&bytes, (uint64_t[]){7, UINT64_C(1) << 40}, 16);
    put_tensor(&bytes, "token_embd.weight", 2, (uint64_t[]){32, 3}, TYPE_Q8_0, 0);       /* 102 bytes */
    put_tensor(&bytes, "blk.0.ix.weight", 1, (uint64_t[]){33}, 25, 128);                 /* I16: 66 */
    put_tensor(&bytes, "d2t", 1, (uint64_t[]){4}, TYPE_I64, 256);                        /* 32 */
    put_tensor(&bytes, "blk.0.conv.weight", 4, (uint64_t[]){2, 3, 1, 2}, TYPE_F32, 320); /* 48 */
    put_padding(&bytes, 64);
    for (int i = 0; i < 368; i++) put_u8(&bytes, (uint8_t)i);
    return bytes;
}

/* ---- expectations ----------------------------------------------------------------------------------- */

/* Opening fails with `status` and a message that holds `part`; frees the bytes. */
#define EXPECT_FAILURE(bytes, status, part) expect_failure((bytes), (status), (part), __LINE__)

static void expect_failure(Bytes bytes, bee_status status, const char *part, int line) {
    bee_error error = {BEE_OK, ""};
    bee_file *file = open_bytes(bytes.data, bytes.size, &error);
    bool right = !file && error.status == status && strstr(error.message, part);
    if (!CHECK(right)) {
        printf("    line %d: %s with status %d, message \"%s\"; expected status %d, \"%s\"\n", line,
               file ? "opened" : "failed", error.status, error.message, status, part);
    }
    bee_file_close(file);
    free(bytes.data);
}

/* Opening succeeds; frees the bytes. */
#define EXPECT_FILE(bytes) expect_file((bytes), __LINE__)

static bee_file *expect_file(Bytes bytes, int line) {
    bee_error error = {BEE_OK, ""};
    bee_file *file = open_bytes(bytes.data, bytes.size, &error);
    if (!CHECK(file != NULL)) printf("    line %d: %s\n", line, error.message);
    REQUIRE(file);
    free(bytes.data);
    return file;
}

/* ---- sound files ------------------------------------------------------------------------------------ */

static void test_integers(const bee_file *file) {
    bee_error error;
    int64_t value = 0;
    static const struct {
        const char *key;
        int64_t value;
    } expected[] = {
        {"test.u8", 200},         {"test.i8", -100},         {"test.u16", 60000},     {"test.i16", -30000},
        {"test.u32", 4000000000}, {"test.i32", -2000000000}, {"test.i64", INT64_MIN}, {"general.alignment", 64},
    };
    for (size_t i = 0; i < sizeof expected / sizeof expected[0]; i++) {
        CHECK_EQ(gguf_int(file, expected[i].key, true, INT64_MIN, INT64_MAX, &value, &error), BEE_OK);
        CHECK_EQ(value, expected[i].value);
    }
    CHECK_EQ(gguf_int(file, "test.u64", true, INT64_MIN, INT64_MAX, &value, &error), BEE_ERROR_FORMAT);
    CHECK_CONTAINS(error.message, "'test.u64' is 18446744073709551615");
    CHECK_EQ(gguf_int(file, "test.u8", true, 0, 199, &value, &error), BEE_ERROR_FORMAT);
    CHECK_CONTAINS(error.message, "'test.u8' is 200; it must be between 0 and 199");
    CHECK_EQ(gguf_int(file, "test.i8", true, -99, 0, &value, &error), BEE_ERROR_FORMAT);
    CHECK_EQ(gguf_int(file, "test.f32", true, 0, 10, &value, &error), BEE_ERROR_FORMAT);
    CHECK_CONTAINS(error.message, "'test.f32' is of type float32; it must be an integer");
    CHECK_EQ(gguf_int(file, "test.bool", true, 0, 10, &value, &error), BEE_ERROR_FORMAT);
    CHECK_EQ(gguf_int(file, "test.ints", true, 0, 10, &value, &error), BEE_ERROR_FORMAT);
    CHECK_CONTAINS(error.message, "'test.ints' is an array of 3 of type int16");
}

static void test_absent_keys(const bee_file *file) {
    bee_error error;
    bee_metadata found;
    int64_t whole = 42;
    double real = 4.2;
    bool flag = true;
    char text[8] = "kept";
    int32_t numbers[1] = {7};
    int count = 9;
    CHECK(!gguf_find(file, "test.none", &found));
    CHECK_EQ(gguf_int(file, "test.none", true, 0, 1, &whole, &error), BEE_ERROR_FORMAT);
    CHECK_CONTAINS(error.message, "metadata 'test.none' is missing");
    CHECK_EQ(gguf_float(file, "test.none", true, &real, &error), BEE_ERROR_FORMAT);
    CHECK_EQ(gguf_bool(file, "test.none", true, &flag, &error), BEE_ERROR_FORMAT);
    CHECK_EQ(gguf_string(file, "test.none", true, text, sizeof text, &error), BEE_ERROR_FORMAT);
    CHECK_EQ(gguf_ints(file, "test.none", true, numbers, 1, &count, &error), BEE_ERROR_FORMAT);
    CHECK_EQ(gguf_int(file, "test.none", false, 0, 1, &whole, &error), BEE_OK);
    CHECK_EQ(gguf_float(file, "test.none", false, &real, &error), BEE_OK);
    CHECK_EQ(gguf_bool(file, "test.none", false, &flag, &error), BEE_OK);
    CHECK_EQ(gguf_string(file, "test.none", false, text, sizeof text, &error), BEE_OK);
    CHECK_EQ(gguf_ints(file, "test.none", false, numbers, 1, &count, &error), BEE_OK);
    CHECK(whole == 42 && real == 4.2 && flag && strcmp(text, "kept") == 0 && numbers[0] == 7 && count == 9);
    /* A prefix of a key, and a key with something behind it, are other keys. */
    CHECK(!gguf_find(file, "test.u", &found));
    CHECK(!gguf_find(file, "test.u88", &found));
    CHECK(!gguf_find(file, "", &found));
}

static void test_other_scalars(const bee_file *file) {
    bee_error error;
    double real;
    bool flag = false;
    char text[6];
    CHECK_EQ(gguf_float(file, "test.f32", true, &real, &error), BEE_OK);
    CHECK_NEAR(real, 1.5, 0);
    CHECK_EQ(gguf_float(file, "test.f64", true, &real, &error), BEE_OK);
    CHECK_NEAR(real, 0.1, 0);
    CHECK_EQ(gguf_float(file, "test.u8", true, &real, &error), BEE_ERROR_FORMAT);
    CHECK_CONTAINS(error.message, "'test.u8' is of type uint8; it must be a float32 or float64");
    CHECK_EQ(gguf_bool(file, "test.bool", true, &flag, &error), BEE_OK);
    CHECK(flag);
    CHECK_EQ(gguf_bool(file, "test.u8", true, &flag, &error), BEE_ERROR_FORMAT);
    CHECK_EQ(gguf_string(file, "general.architecture", true, text, 6, &error), BEE_OK);
    CHECK_TEXT(text, "llama");
    CHECK_EQ(gguf_string(file, "general.architecture", true, text, 5, &error), BEE_ERROR_FORMAT);
    CHECK_CONTAINS(error.message, "'general.architecture' has 5 bytes of text; it may have 4");
    CHECK_EQ(gguf_string(file, "general.architecture", true, text, 0, &error), BEE_ERROR_FORMAT);
    CHECK_EQ(gguf_string(file, "test.u8", true, text, 6, &error), BEE_ERROR_FORMAT);
    CHECK_EQ(gguf_string(file, "tokenizer.ggml.tokens", true, text, 6, &error), BEE_ERROR_FORMAT);
}

static void test_arrays(const bee_file *file) {
    bee_error error;
    int32_t numbers[3] = {0};
    int count = -1;
    CHECK_EQ(gguf_ints(file, "test.ints", true, numbers, 3, &count, &error), BEE_OK);
    CHECK(count == 3 && numbers[0] == 1 && numbers[1] == -2 && numbers[2] == 300);
    CHECK_EQ(gguf_ints(file, "test.ints", true, numbers, 2, &count, &error), BEE_ERROR_FORMAT);
    CHECK_CONTAINS(error.message, "'test.ints' has 3 elements; it may have 2");
    CHECK_EQ(gguf_ints(file, "test.flags", true, numbers, 3, &count, &error), BEE_OK);
    CHECK(count == 3 && numbers[0] == 1 && numbers[1] == 0 && numbers[2] == 1);
    CHECK_EQ(gguf_ints(file, "test.i8", true, numbers, 3, &count, &error), BEE_OK);
    CHECK(count == 1 && numbers[0] == -100);
    CHECK_EQ(gguf_ints(file, "test.u32", true, numbers, 3, &count, &error), BEE_ERROR_FORMAT);
    CHECK_EQ(gguf_ints(file, "test.u64", true, numbers, 3, &count, &error), BEE_ERROR_FORMAT);
    CHECK_EQ(gguf_ints(file, "test.bool", true, numbers, 3, &count, &error), BEE_ERROR_FORMAT);
    CHECK_EQ(gguf_ints(file, "test.empty", true, numbers, 3, &count, &error), BEE_ERROR_FORMAT); /* of floats */
    CHECK_EQ(gguf_ints(file, "test.longs", true, numbers, 3, &count, &error), BEE_ERROR_FORMAT);
    CHECK_CONTAINS(error.message, "'test.longs': element 1 does not fit into 32 bits");
    bee_metadata tokens;
    REQUIRE(gguf_find(file, "tokenizer.ggml.tokens", &tokens));
    CHECK(tokens.type == BEE_VALUE_ARRAY && tokens.element_type == BEE_VALUE_STRING);
    CHECK_EQ(tokens.count, 4);
    CHECK_EQ(tokens.size, 4 * 8 + 1 + 0 + 5 + 7);
    CHECK(memcmp((const uint8_t *)tokens.data + 8 + 1 + 8 + 8, "\xC4\xA0the", 5) == 0);
}

static void test_tensors(const bee_file *file) {
    bee_error error;
    bee_tensor_info info;
    Tensor tensor;
    CHECK_EQ(bee_file_tensor(file, 1, &info, &error), BEE_OK);
    CHECK_TEXT(info.type_name, "I16");
    CHECK(info.type == 25 && !info.supported && info.size == 66 && info.n_dimensions == 1);
    CHECK(info.shape[0] == 33 && info.shape[1] == 1 && info.shape[2] == 1 && info.shape[3] == 1);
    CHECK(info.name_length == 15 && memcmp(info.name, "blk.0.ix.weight", 15) == 0);
    CHECK_EQ(gguf_tensor(file, "blk.0.ix.weight", &tensor, &error), BEE_ERROR_UNSUPPORTED);
    CHECK_CONTAINS(error.message, "'blk.0.ix.weight' has type I16 (25)");
    CHECK_CONTAINS(error.message, "Q4_K");
    CHECK_EQ(gguf_tensor(file, "none", &tensor, &error), BEE_ERROR_FORMAT);
    CHECK_CONTAINS(error.message, "tensor 'none' is missing");
    CHECK(!gguf_has_tensor(file, "none") && gguf_has_tensor(file, "d2t") && gguf_has_tensor(file, "blk.0.ix.weight"));

    CHECK_EQ(gguf_tensor(file, "blk.0.conv.weight", &tensor, &error), BEE_OK);
    CHECK(tensor.type == TYPE_F32 && tensor.n_dimensions == 4 && tensor.columns == 2 && tensor.rows == 6);
    CHECK(tensor.shape[0] == 2 && tensor.shape[1] == 3 && tensor.shape[2] == 1 && tensor.shape[3] == 2);
    uint8_t data[48];
    CHECK(tensor.size == sizeof data && gguf_read(&tensor, data, &error) == BEE_OK);
    CHECK(data[0] == (uint8_t)320 && data[47] == (uint8_t)367);
    CHECK_EQ(tensor.offset % 64, 0);
    CHECK(tensor.name_length == 17 && memcmp(tensor.name, "blk.0.conv.weight", 17) == 0);
    CHECK_EQ(gguf_tensor(file, "token_embd.weight", &tensor, &error), BEE_OK);
    CHECK(tensor.type == TYPE_Q8_0 && tensor.columns == 32 && tensor.rows == 3 && tensor.size == 102);
    CHECK_EQ(gguf_tensor(file, "d2t", &tensor, &error), BEE_OK);
    CHECK(tensor.type == TYPE_I64 && tensor.size == 32 && tensor.rows == 1);
}

static void test_sample(void) {
    Bytes bytes = sample_file();
    size_t size = bytes.size;
    bee_file *file = EXPECT_FILE(bytes);
    CHECK_EQ(bee_file_size(file), size);
    CHECK_EQ(bee_file_metadata_count(file), 18);
    CHECK_EQ(bee_file_tensor_count(file), 4);
    bee_error error;
    bee_metadata value;
    CHECK_EQ(bee_file_metadata(file, 0, &value, &error), BEE_OK);
    CHECK(value.key_length == 20 && memcmp(value.key, "general.architecture", 20) == 0);
    CHECK(value.type == BEE_VALUE_STRING && value.count == 1 && value.size == 8 + 5);
    CHECK_EQ(bee_file_metadata(file, 18, &value, &error), BEE_ERROR_ARGUMENT);
    CHECK_CONTAINS(error.message, "metadata index 18");
    test_integers(file);
    test_absent_keys(file);
    test_other_scalars(file);
    test_arrays(file);
    test_tensors(file);
    exercise(file);
    bee_file_close(file);
}

static void test_small_files(void) {
    bee_file *file = EXPECT_FILE(begin(0, 0));
    CHECK(bee_file_metadata_count(file) == 0 && bee_file_tensor_count(file) == 0 && !gguf_has_tensor(file, "weight"));
    exercise(file);
    bee_file_close(file);
    Bytes bytes = begin_simple(0); /* no metadata: the default alignment holds */
    end_simple(&bytes);
    file = EXPECT_FILE(bytes);
    exercise(file);
    bee_file_close(file);
    bee_file_close(NULL);
}

static void test_floats_must_be_finite(void) {
    Bytes bytes = begin_simple(4);
    PUT_VALUE(&bytes, "nan", BEE_VALUE_FLOAT32, float, NAN);
    PUT_VALUE(&bytes, "infinity", BEE_VALUE_FLOAT32, float, INFINITY);
    PUT_VALUE(&bytes, "minus", BEE_VALUE_FLOAT64, double, -(double)INFINITY);
    PUT_VALUE(&bytes, "largest", BEE_VALUE_FLOAT64, double, 1e308);
    end_simple(&bytes);
    bee_file *file = EXPECT_FILE(bytes);
    bee_error error;
    double value = 1;
    CHECK_EQ(gguf_float(file, "nan", true, &value, &error), BEE_ERROR_FORMAT);
    CHECK_CONTAINS(error.message, "'nan'");
    CHECK_CONTAINS(error.message, "it must be a finite number");
    CHECK_EQ(gguf_float(file, "infinity", true, &value, &error), BEE_ERROR_FORMAT);
    CHECK_EQ(gguf_float(file, "minus", false, &value, &error), BEE_ERROR_FORMAT);
    CHECK(value == 1);
    CHECK_EQ(gguf_float(file, "largest", true, &value, &error), BEE_OK);
    bee_file_close(file);
}

static void test_strings_with_nul(void) {
    Bytes bytes = begin_simple(1);
    put_key(&bytes, "text", BEE_VALUE_STRING);
    put_u64(&bytes, 3);
    put(&bytes, "a\0b", 3);
    end_simple(&bytes);
    bee_file *file = EXPECT_FILE(bytes);
    bee_error error;
    char text[8];
    CHECK_EQ(gguf_string(file, "text", true, text, sizeof text, &error), BEE_ERROR_FORMAT);
    CHECK_CONTAINS(error.message, "'text' has a NUL");
    bee_file_close(file);
}

static uint64_t vocabulary_hash(const char *const *tokens, uint64_t count, bool more_metadata, uint64_t *counted) {
    Bytes bytes = begin_simple(more_metadata ? 2 : 1);
    if (more_metadata) put_text_value(&bytes, "general.name", "another file");
    put_texts(&bytes, "tokenizer.ggml.tokens", tokens, count);
    end_simple(&bytes);
    bee_file *file = EXPECT_FILE(bytes);
    uint64_t hash = gguf_vocabulary_hash(file, counted);
    bee_file_close(file);
    return hash;
}

static void test_vocabulary_hash(void) {
    uint64_t count = 0;
    const char *const tokens[] = {"ab", "c", "d"}, *const moved[] = {"a", "bc", "d"},
                      *const swapped[] = {"c", "ab", "d"};
    uint64_t hash = vocabulary_hash(tokens, 3, false, &count);
    CHECK_EQ(count, 3);
    CHECK(hash != 0);
    CHECK_EQ(vocabulary_hash(tokens, 3, true, &count), hash);
    CHECK(vocabulary_hash(tokens, 2, false, &count) != hash);
    CHECK_EQ(count, 2);
    CHECK(vocabulary_hash(moved, 3, false, &count) != hash);
    CHECK(vocabulary_hash(swapped, 3, false, &count) != hash);
    bee_file *file = EXPECT_FILE(begin(0, 0));
    count = 5;
    CHECK_EQ(gguf_vocabulary_hash(file, &count), 0);
    CHECK_EQ(count, 0);
    bee_file_close(file);
}

/* Lookups find each of many names, in whatever order the file has them. */
static void test_many_tensors(void) {
    enum { COUNT = 20000 };
    Bytes bytes = begin(COUNT, 0);
    for (uint64_t i = 0; i < COUNT; i++) {
        char name[32];
        snprintf(name, sizeof name, "blk.%llu.weight", (unsigned long long)(i * 7919 % COUNT));
        put_tensor(&bytes, name, 1, (uint64_t[]){i % 8 + 1}, TYPE_F32, 0);
    }
    put_padding(&bytes, 32);
    put_zeros(&bytes, 32);
    bee_file *file = EXPECT_FILE(bytes);
    for (uint64_t i = 0; i < COUNT; i++) {
        char name[32];
        snprintf(name, sizeof name, "blk.%llu.weight", (unsigned long long)(i * 7919 % COUNT));
        Tensor tensor;
        CHECK(gguf_tensor(file, name, &tensor, NULL) == BEE_OK && tensor.columns == (int64_t)(i % 8 + 1));
    }
    CHECK(!gguf_has_tensor(file, "blk.20000.weight"));
    bee_file_close(file);
}

static void test_type_table(void) {
    static const struct {
        TensorType type;
        const char *name;
        uint32_t elements, bytes;
    } expected[] = {
        {TYPE_F32, "F32", 1, 4},
        {TYPE_F16, "F16", 1, 2},
        {TYPE_BF16, "BF16", 1, 2},
        {TYPE_Q4_0, "Q4_0", 32, 18},
        {TYPE_Q4_1, "Q4_1", 32, 20},
        {TYPE_Q5_0, "Q5_0", 32, 22},
        {TYPE_Q5_1, "Q5_1", 32, 24},
        {TYPE_Q8_0, "Q8_0", 32, 34},
        {TYPE_Q4_K, "Q4_K", 256, 144},
        {TYPE_Q5_K, "Q5_K", 256, 176},
        {TYPE_Q6_K, "Q6_K", 256, 210},
        {TYPE_Q2_K, "Q2_K", 256, 84},
        {TYPE_Q3_K, "Q3_K", 256, 110},
        {TYPE_IQ4_NL, "IQ4_NL", 32, 18},
        {TYPE_IQ4_XS, "IQ4_XS", 256, 136},
        {TYPE_MXFP4, "MXFP4", 32, 17},
        {TYPE_NVFP4, "NVFP4", 64, 36},
        {TYPE_IQ3_S, "IQ3_S", 256, 110},
        {TYPE_IQ3_XXS, "IQ3_XXS", 256, 98},
        {TYPE_IQ2_S, "IQ2_S", 256, 82},
        {TYPE_IQ2_XS, "IQ2_XS", 256, 74},
        {TYPE_IQ2_XXS, "IQ2_XXS", 256, 66},
        {TYPE_IQ1_S, "IQ1_S", 256, 50},
        {TYPE_IQ1_M, "IQ1_M", 256, 56},
        {TYPE_TQ1_0, "TQ1_0", 256, 54},
        {TYPE_TQ2_0, "TQ2_0", 256, 66},
        {TYPE_Q1_0, "Q1_0", 128, 18},
        {TYPE_Q2_0, "Q2_0", 64, 18},
    };
    int count = (int)(sizeof expected / sizeof expected[0]), running = 0;
    for (int i = 0; i < count; i++) {
        const TensorTypeLayout *layout = tensor_type_layout(expected[i].type);
        REQUIRE(layout);
        CHECK_TEXT(layout->name, expected[i].name);
        CHECK(layout->block_elements == expected[i].elements && layout->block_bytes == expected[i].bytes);
        CHECK(layout->runs);
        CHECK_CONTAINS(tensor_types_that_run, layout->name);
    }
    for (uint32_t type = 0; tensor_type_layout(type); type++) {
        const TensorTypeLayout *layout = tensor_type_layout(type);
        CHECK(layout->name != NULL && (layout->block_bytes == 0) == (layout->block_elements == 0));
        if (layout->runs) running++;
    }
    CHECK_EQ(running, count);
    CHECK(tensor_type_layout(UINT32_MAX) == NULL);
}

/* ---- damaged headers -------------------------------------------------------------------------------- */

static Bytes text_file(const char *text) {
    Bytes bytes = {0};
    put(&bytes, text, strlen(text));
    return bytes;
}

static Bytes with_version(uint32_t version) {
    Bytes bytes = sample_file();
    memcpy(bytes.data + 4, &version, sizeof version);
    return bytes;
}

static Bytes with_counts(uint64_t tensors, uint64_t metadata) {
    Bytes bytes = sample_file();
    memcpy(bytes.data + 8, &tensors, sizeof tensors);
    memcpy(bytes.data + 16, &metadata, sizeof metadata);
    return bytes;
}

static void test_foreign_files(void) {
    EXPECT_FAILURE(text_file("hello, world"), BEE_ERROR_FORMAT, "not a GGUF file");
    EXPECT_FAILURE(text_file("GGU"), BEE_ERROR_FORMAT, "not a GGUF file");
    EXPECT_FAILURE(text_file("PK\x03\x04 and so on"), BEE_ERROR_FORMAT, "ZIP archive");
    EXPECT_FAILURE(text_file("version https://git-lfs.github.com/spec/v1\n"), BEE_ERROR_FORMAT, "Git LFS pointer");
    EXPECT_FAILURE(text_file("<!doctype html>"), BEE_ERROR_FORMAT, "HTML");
    EXPECT_FAILURE(text_file("tjgg 1234"), BEE_ERROR_FORMAT, "old GGJT format");
    Bytes safetensors = {0};
    put_u64(&safetensors, 2);
    put(&safetensors, "{\"a\"", 4);
    EXPECT_FAILURE(safetensors, BEE_ERROR_FORMAT, "safetensors");
    EXPECT_FAILURE((Bytes){0}, BEE_ERROR_FORMAT, "the file is empty");
}

static void test_versions(void) {
    EXPECT_FAILURE(with_version(1), BEE_ERROR_UNSUPPORTED, "GGUF version 1; only version 3 can be read");
    EXPECT_FAILURE(with_version(2), BEE_ERROR_UNSUPPORTED, "GGUF version 2; only version 3 can be read");
    EXPECT_FAILURE(with_version(4), BEE_ERROR_UNSUPPORTED, "GGUF version 4");
    EXPECT_FAILURE(with_version(0), BEE_ERROR_UNSUPPORTED, "GGUF version 0");
    EXPECT_FAILURE(with_version(UINT32_C(3) << 24), BEE_ERROR_UNSUPPORTED, "big-endian (byte-swapped)");
    bee_file_close(EXPECT_FILE(with_version(3)));
}

static void test_counts(void) {
    EXPECT_FAILURE(with_counts(UINT64_MAX, 18), BEE_ERROR_FORMAT,
                   "the tensor count is 18446744073709551615, more than");
    EXPECT_FAILURE(with_counts(4, UINT64_MAX), BEE_ERROR_FORMAT,
                   "the metadata count is 18446744073709551615, more than");
    /* Counts whose product with an entry's size wraps around to something small. */
    EXPECT_FAILURE(with_counts(UINT64_C(1) << 61, 18), BEE_ERROR_FORMAT, "the tensor count");
    EXPECT_FAILURE(with_counts(4, UINT64_C(1) << 60), BEE_ERROR_FORMAT, "the metadata count");
    /* Counts that the size allows but the content does not. */
    EXPECT_FAILURE(with_counts(4, 19), BEE_ERROR_FORMAT, "");
    EXPECT_FAILURE(with_counts(5, 18), BEE_ERROR_FORMAT, "tensor entry 5 of 5");
    /* More entries than any model has, in a file that is large enough for them. */
    Bytes bytes = begin(0, (1 << 20) + 1);
    put_zeros(&bytes, ((1 << 20) + 1) * 14);
    EXPECT_FAILURE(bytes, BEE_ERROR_FORMAT, "the limit is 1048576");
}

/* ---- damaged metadata ------------------------------------------------------------------------------- */

static void test_keys(void) {
    Bytes bytes = begin_simple(1);
    put_key(&bytes, "", BEE_VALUE_UINT8);
    end_simple(&bytes);
    EXPECT_FAILURE(bytes, BEE_ERROR_FORMAT,
                   "metadata entry 1 of 1: the key has a length of 0 bytes; it must be 1 to 65535");

    bytes = begin_simple(1);
    put_u64(&bytes, 65536);
    put_zeros(&bytes, 65536 + 64);
    EXPECT_FAILURE(bytes, BEE_ERROR_FORMAT, "the key has a length of 65536 bytes");

    bytes = begin_simple(1);
    put_u64(&bytes, UINT64_MAX - 3);
    end_simple(&bytes);
    EXPECT_FAILURE(bytes, BEE_ERROR_FORMAT, "the key has a length of 18446744073709551612 bytes");

    bytes = begin_simple(1);
    put_u64(&bytes, 60000);
    end_simple(&bytes);
    EXPECT_FAILURE(bytes, BEE_ERROR_FORMAT, "the key needs 60000 bytes");

    static const char *const unprintable[] = {"line\nbreak",  "esc\x1b[2J",      "\xFFlatin",        "cut\xE2\x82",
                                              "\xC0\x80",     "\xED\xA0\x80",    "\xF5\x80\x80\x80", "\xC2\x85",
                                              "\xE0\x80\x80", "\xF4\x90\x80\x80"};
    for (size_t i = 0; i < sizeof unprintable / sizeof unprintable[0]; i++) {
        bytes = begin_simple(1);
        PUT_VALUE(&bytes, unprintable[i], BEE_VALUE_UINT8, uint8_t, 1);
        end_simple(&bytes);
        EXPECT_FAILURE(bytes, BEE_ERROR_FORMAT, "the key is not printable UTF-8 text");
    }
    bytes = begin_simple(1);
    PUT_VALUE(&bytes, "n\xC3\xA4m\xE2\x82\xAC\xF0\x9F\x90\x9D", BEE_VALUE_UINT8, uint8_t, 1);
    end_simple(&bytes);
    bee_file_close(EXPECT_FILE(bytes));

    bytes = begin_simple(3);
    PUT_VALUE(&bytes, "twice", BEE_VALUE_UINT8, uint8_t, 1);
    PUT_VALUE(&bytes, "once", BEE_VALUE_UINT8, uint8_t, 1);
    PUT_VALUE(&bytes, "twice", BEE_VALUE_UINT16, uint16_t, 2);
    end_simple(&bytes);
    EXPECT_FAILURE(bytes, BEE_ERROR_FORMAT, "metadata 'twice': the key occurs twice");
}

static void test_long_key_in_message(void) {
    char key[1002] = "k";
    for (int i = 0; i < 500; i++) memcpy(key + 1 + 2 * i, "\xC3\xA4", 2); /* characters of two bytes, none to be cut */
    Bytes bytes = begin_simple(1);
    PUT_VALUE(&bytes, key, BEE_VALUE_BOOL, uint8_t, 2);
    end_simple(&bytes);
    EXPECT_FAILURE(bytes, BEE_ERROR_FORMAT, "\xC3\xA4...': a bool is 2");
}

static void test_value_types(void) {
    Bytes bytes = begin_simple(1);
    PUT_VALUE(&bytes, "odd", 13, uint64_t, 0);
    end_simple(&bytes);
    EXPECT_FAILURE(bytes, BEE_ERROR_FORMAT, "metadata 'odd': the value's type is 13; GGUF's types are 0 to 12");

    bytes = begin_simple(1);
    PUT_VALUE(&bytes, "flag", BEE_VALUE_BOOL, uint8_t, 2);
    end_simple(&bytes);
    EXPECT_FAILURE(bytes, BEE_ERROR_FORMAT, "metadata 'flag': a bool is 2; it must be 0 or 1");

    bytes = begin_simple(1);
    put_array_head(&bytes, "flags", BEE_VALUE_BOOL, 3);
    put(&bytes, (uint8_t[]){1, 0, 128}, 3);
    end_simple(&bytes);
    EXPECT_FAILURE(bytes, BEE_ERROR_FORMAT, "metadata 'flags': a bool");

    bytes = begin_simple(1);
    put_key(&bytes, "text", BEE_VALUE_STRING);
    put_u64(&bytes, UINT64_MAX);
    end_simple(&bytes);
    EXPECT_FAILURE(bytes, BEE_ERROR_FORMAT, "metadata 'text': string 1 of 1 runs past the file's");

    bytes = begin(0, 1);
    put_key(&bytes, "number", BEE_VALUE_UINT64);
    put_zeros(&bytes, 7);
    EXPECT_FAILURE(bytes, BEE_ERROR_FORMAT,
                   "metadata 'number': the value needs 8 bytes at byte 42 but the file has 49 bytes");
}

static Bytes with_array(bee_value_type element_type, uint64_t count) {
    Bytes bytes = begin_simple(1);
    put_array_head(&bytes, "list", element_type, count);
    put_zeros(&bytes, 64);
    end_simple(&bytes);
    return bytes;
}

static void test_arrays_out_of_bounds(void) {
    EXPECT_FAILURE(with_array(BEE_VALUE_ARRAY, 1), BEE_ERROR_FORMAT, "metadata 'list': an array of arrays");
    EXPECT_FAILURE(with_array(99, 1), BEE_ERROR_FORMAT, "metadata 'list': the type of the array's elements is 99");
    EXPECT_FAILURE(with_array(BEE_VALUE_UINT8, UINT64_MAX), BEE_ERROR_FORMAT, "metadata 'list': the value needs");
    EXPECT_FAILURE(with_array(BEE_VALUE_UINT8, 1000), BEE_ERROR_FORMAT, "metadata 'list': the value needs 1000 bytes");
    /* count * 8 and count * 4 are 8 in 64 bits */
    EXPECT_FAILURE(with_array(BEE_VALUE_UINT64, (UINT64_C(1) << 61) + 1), BEE_ERROR_FORMAT, "larger than any file");
    EXPECT_FAILURE(with_array(BEE_VALUE_FLOAT32, (UINT64_C(1) << 62) + 2), BEE_ERROR_FORMAT, "larger than any file");
    EXPECT_FAILURE(with_array(BEE_VALUE_STRING, UINT64_MAX), BEE_ERROR_FORMAT, "metadata 'list': string ");
    Bytes bytes = begin_simple(1);
    put_array_head(&bytes, "list", BEE_VALUE_STRING, 2);
    put_string(&bytes, "fits");
    put_u64(&bytes, UINT64_MAX - 100);
    end_simple(&bytes);
    EXPECT_FAILURE(bytes, BEE_ERROR_FORMAT, "metadata 'list': string 2 of 2 runs past the file's");
}

static Bytes with_alignment(uint32_t alignment) {
    Bytes bytes = begin_simple(1);
    PUT_VALUE(&bytes, "general.alignment", BEE_VALUE_UINT32, uint32_t, alignment);
    put_tensor(&bytes, "weight", 1, (uint64_t[]){8}, TYPE_F32, 0);
    if (alignment > 0 && alignment < 100000) put_padding(&bytes, alignment);
    put_zeros(&bytes, 32);
    return bytes;
}

static void test_alignments(void) {
    EXPECT_FAILURE(with_alignment(0), BEE_ERROR_FORMAT, "'general.alignment' is 0; it must be between 8 and");
    EXPECT_FAILURE(with_alignment(1), BEE_ERROR_FORMAT, "'general.alignment' is 1;");
    EXPECT_FAILURE(with_alignment(4), BEE_ERROR_FORMAT, "'general.alignment' is 4;");
    EXPECT_FAILURE(with_alignment(24), BEE_ERROR_FORMAT, "'general.alignment': 24 is not a power of two");
    EXPECT_FAILURE(with_alignment(UINT32_MAX), BEE_ERROR_FORMAT, "'general.alignment' is 4294967295;");
    /* a power of two that puts the data far behind the file's end */
    EXPECT_FAILURE(with_alignment(UINT32_C(1) << 31), BEE_ERROR_FORMAT,
                   "tensor 'weight': data ends at byte 2147483680");
    for (uint32_t alignment = 8; alignment <= 4096; alignment *= 2) {
        bee_file *file = EXPECT_FILE(with_alignment(alignment));
        exercise(file);
        bee_file_close(file);
    }
    Bytes bytes = begin_simple(1);
    put_text_value(&bytes, "general.alignment", "32");
    end_simple(&bytes);
    EXPECT_FAILURE(bytes, BEE_ERROR_FORMAT, "'general.alignment' is of type string; it must be an integer");
}

/* ---- damaged tensors -------------------------------------------------------------------------------- */

/* One tensor, then `data` bytes of data. */
static Bytes with_tensor(uint32_t dimensions, const uint64_t *shape, uint32_t type, uint64_t offset, size_t data) {
    Bytes bytes = begin(1, 0);
    put_tensor(&bytes, "blk.0.attn_q.weight", dimensions, shape, type, offset);
    put_padding(&bytes, 32);
    put_zeros(&bytes, data);
    return bytes;
}

static void test_tensor_names(void) {
    Bytes bytes = begin(1, 0);
    put_tensor(&bytes, "", 1, (uint64_t[]){8}, TYPE_F32, 0);
    put_zeros(&bytes, 64);
    EXPECT_FAILURE(bytes, BEE_ERROR_FORMAT,
                   "tensor entry 1 of 1: the name has a length of 0 bytes; it must be 1 to 255");
    char name[257];
    memset(name, 'n', 256);
    for (int length = 256; length >= 255; length--) {
        name[length] = '\0';
        bytes = begin(1, 0);
        put_tensor(&bytes, name, 1, (uint64_t[]){8}, TYPE_F32, 0);
        put_zeros(&bytes, 64);
        if (length > 255) {
            EXPECT_FAILURE(bytes, BEE_ERROR_FORMAT, "the name has a length of 256 bytes; it must be 1 to 255");
        } else {
            bee_file_close(EXPECT_FILE(bytes));
        }
    }
    bytes = begin(1, 0);
    put_tensor(&bytes, "tab\there", 1, (uint64_t[]){8}, TYPE_F32, 0);
    put_zeros(&bytes, 64);
    EXPECT_FAILURE(bytes, BEE_ERROR_FORMAT, "the name is not printable");
    bytes = begin(3, 0);
    put_tensor(&bytes, "b", 1, (uint64_t[]){8}, TYPE_F32, 0);
    put_tensor(&bytes, "a", 1, (uint64_t[]){8}, TYPE_F32, 0);
    put_tensor(&bytes, "b", 1, (uint64_t[]){8}, TYPE_F32, 0);
    put_zeros(&bytes, 64);
    EXPECT_FAILURE(bytes, BEE_ERROR_FORMAT, "tensor 'b': the name occurs twice");
}

static void test_tensor_shapes(void) {
    static const uint64_t ones[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    EXPECT_FAILURE(with_tensor(0, ones, TYPE_F32, 0, 64), BEE_ERROR_FORMAT,
                   "tensor 'blk.0.attn_q.weight': 0 dimensions; there must be 1 to 4");
    EXPECT_FAILURE(with_tensor(5, ones, TYPE_F32, 0, 64), BEE_ERROR_FORMAT, "5 dimensions; there must be 1 to 4");
    for (uint32_t dimensions = 1; dimensions <= 4; dimensions++) {
        bee_file_close(EXPECT_FILE(with_tensor(dimensions, ones, TYPE_F32, 0, 4)));
    }
    Bytes bytes = begin(1, 0);
    put_string(&bytes, "weight");
    put_u32(&bytes, UINT32_MAX);
    put_zeros(&bytes, 64);
    EXPECT_FAILURE(bytes, BEE_ERROR_FORMAT, "4294967295 dimensions");
    EXPECT_FAILURE(with_tensor(2, (uint64_t[]){32, 0}, TYPE_F32, 0, 64), BEE_ERROR_FORMAT,
                   "dimension 1 of the shape is 0");
    EXPECT_FAILURE(with_tensor(1, (uint64_t[]){33}, TYPE_Q8_0, 0, 64), BEE_ERROR_FORMAT,
                   "rows of 33 elements; Q8_0 needs a multiple of 32");
    EXPECT_FAILURE(with_tensor(2, (uint64_t[]){128, 2}, TYPE_Q4_K, 0, 512), BEE_ERROR_FORMAT,
                   "rows of 128 elements; Q4_K needs a multiple of 256"); /* the product would be a multiple */
}

/* The class of CVE-2026-27940: sizes computed from the file wrap around, and what is allocated or checked is small. */
static void test_sizes_that_overflow(void) {
    const uint64_t two = 1;
    EXPECT_FAILURE(with_tensor(2, (uint64_t[]){two << 32, two << 32}, TYPE_F32, 0, 64), BEE_ERROR_FORMAT,
                   "the shape's dimensions 0 to 1 multiply to more than 2^63 - 1");
    EXPECT_FAILURE(with_tensor(4, (uint64_t[]){two << 16, two << 16, two << 16, two << 16}, TYPE_F32, 0, 64),
                   BEE_ERROR_FORMAT, "the shape's dimensions 0 to 3 multiply");
    EXPECT_FAILURE(with_tensor(1, (uint64_t[]){two << 63}, TYPE_F32, 0, 64), BEE_ERROR_FORMAT, "multiply to more");
    EXPECT_FAILURE(with_tensor(1, (uint64_t[]){UINT64_MAX}, TYPE_F32, 0, 64), BEE_ERROR_FORMAT, "multiply to more");
    /* fits as a count of elements; as bytes it is 0 and 16 in 64 bits */
    EXPECT_FAILURE(with_tensor(1, (uint64_t[]){two << 62}, TYPE_F32, 0, 64), BEE_ERROR_FORMAT,
                   "more than 2^64 bytes of F32");
    EXPECT_FAILURE(with_tensor(1, (uint64_t[]){(two << 62) + 4}, TYPE_F32, 0, 64), BEE_ERROR_FORMAT,
                   "more than 2^64 bytes");
    EXPECT_FAILURE(with_tensor(2, (uint64_t[]){32, (two << 57) + 1}, TYPE_Q8_0, 0, 64), BEE_ERROR_FORMAT,
                   "data ends at");
    EXPECT_FAILURE(with_tensor(2, (uint64_t[]){two << 31, (two << 32) - 1}, TYPE_I64, 0, 64), BEE_ERROR_FORMAT,
                   "more than 2^64 bytes of I64");
    /* each part is possible, their sum wraps around to within the file */
    EXPECT_FAILURE(with_tensor(1, (uint64_t[]){8}, TYPE_F32, UINT64_MAX - 31, 64), BEE_ERROR_FORMAT,
                   "its offset 18446744073709551584 and size 32 add up to more than 2^64");
    EXPECT_FAILURE(with_tensor(1, (uint64_t[]){(two << 62) - 8}, TYPE_F32, 64, 64), BEE_ERROR_FORMAT, "add up to more");
    EXPECT_FAILURE(with_tensor(1, (uint64_t[]){8}, TYPE_F32, two << 63, 64), BEE_ERROR_FORMAT, "data ends at byte");
}

/* The class of CVE-2026-7482: the header promises more tensor data than the file has. */
static void test_data_outside_the_file(void) {
    EXPECT_FAILURE(
        with_tensor(1, (uint64_t[]){8}, TYPE_F32, 0, 31), BEE_ERROR_FORMAT,
        "tensor 'blk.0.attn_q.weight': data ends at byte 128 but the file has 127 bytes; the download may be "
        "incomplete");
    bee_file_close(EXPECT_FILE(with_tensor(1, (uint64_t[]){8}, TYPE_F32, 0, 32)));
    EXPECT_FAILURE(with_tensor(2, (uint64_t[]){4096, 4096}, TYPE_F16, 0, 64), BEE_ERROR_FORMAT,
                   "data ends at byte 33554528");
    EXPECT_FAILURE(with_tensor(1, (uint64_t[]){8}, TYPE_F32, 64, 64), BEE_ERROR_FORMAT, "data ends at byte 192");
    EXPECT_FAILURE(with_tensor(1, (uint64_t[]){8}, TYPE_F32, 16, 64), BEE_ERROR_FORMAT,
                   "its offset 16 is not a multiple of the file's alignment, 32");
    EXPECT_FAILURE(with_tensor(1, (uint64_t[]){8}, TYPE_F32, 1000032, 64), BEE_ERROR_FORMAT,
                   "data ends at byte 1000160");
    EXPECT_FAILURE(with_tensor(1, (uint64_t[]){256}, 16, 0, 65), BEE_ERROR_FORMAT,
                   "data ends"); /* of a type that is not run */
    EXPECT_FAILURE(with_tensor(1, (uint64_t[]){8}, 200, 64, 63), BEE_ERROR_FORMAT, "data ends"); /* of an unknown one */
}

static void test_tensor_types(void) {
    EXPECT_FAILURE(with_tensor(1, (uint64_t[]){8}, 256, 0, 64), BEE_ERROR_FORMAT,
                   "its type is 256, which is no tensor type");
    EXPECT_FAILURE(with_tensor(1, (uint64_t[]){8}, UINT32_MAX, 0, 64), BEE_ERROR_FORMAT, "its type is 4294967295");
    static const struct {
        uint32_t type;
        const char *name;
    } unlaid[] = {{4, "Q4_2"}, {31, "Q4_0_4_4"}, {200, "unknown"}};
    for (size_t i = 0; i < sizeof unlaid / sizeof unlaid[0]; i++) {
        bee_file *file = EXPECT_FILE(with_tensor(1, (uint64_t[]){8}, unlaid[i].type, 32, 32));
        bee_tensor_info info;
        bee_error error;
        Tensor tensor;
        CHECK_EQ(bee_file_tensor(file, 0, &info, &error), BEE_OK);
        CHECK_TEXT(info.type_name, unlaid[i].name);
        CHECK(info.size == 0 && !info.supported && info.type == (int32_t)unlaid[i].type);
        CHECK_EQ(gguf_tensor(file, "blk.0.attn_q.weight", &tensor, &error), BEE_ERROR_UNSUPPORTED);
        exercise(file);
        bee_file_close(file);
    }
}

/* ---- any damage ------------------------------------------------------------------------------------- */

/* The sample ends with its last tensor, so whatever is cut off was needed. */
static void test_every_truncation(void) {
    Bytes bytes = sample_file();
    for (size_t size = 0; size < bytes.size; size++) {
        bee_status status = exercise_bytes(bytes.data, size);
        if (!CHECK_EQ(status, BEE_ERROR_FORMAT)) printf("    cut to %zu bytes\n", size);
    }
    CHECK_EQ(exercise_bytes(bytes.data, bytes.size), BEE_OK);
    free(bytes.data);
}

static uint64_t next_random(uint64_t *state) { /* xorshift64 */
    *state ^= *state << 13;
    *state ^= *state >> 7;
    return *state ^= *state << 17;
}

/* Nothing is expected of damaged bytes but that opening and using the file stays within them. */
static void test_random_damage(void) {
    Bytes original = sample_file();
    uint8_t *damaged = malloc(original.size);
    REQUIRE(damaged);
    uint64_t state = 20261123, opened = 0, refused = 0;
    static const uint8_t telling[] = {0, 1, 0x7F, 0x80, 0xFF};
    for (int round = 0; round < 30000; round++) {
        memcpy(damaged, original.data, original.size);
        uint64_t changes = 1 + next_random(&state) % 4;
        for (uint64_t i = 0; i < changes; i++) {
            uint64_t random = next_random(&state), at = random % (original.size - 300); /* rather not in the data */
            bool flip = (random >> 40) & 1;
            damaged[at] = flip ? damaged[at] ^ (uint8_t)(1u << ((random >> 32) & 7)) : telling[(random >> 48) % 5];
        }
        if (exercise_bytes(damaged, original.size) == BEE_OK) {
            opened++;
        } else {
            refused++;
        }
    }
    CHECK(opened > 1000 && refused > 1000); /* both ways were taken: the damage was neither trivial nor total */
    free(damaged);
    free(original.data);
}

/* ---- paths ------------------------------------------------------------------------------------------ */

static int open_descriptors(void) {
    DIR *directory = opendir("/proc/self/fd");
    REQUIRE(directory);
    int count = 0;
    while (readdir(directory)) count++;
    closedir(directory);
    return count;
}

static void expect_path_failure(const char *path, bee_status status, const char *part) {
    bee_error error = {BEE_OK, ""};
    bee_file *file = bee_file_open(path, &error);
    CHECK(file == NULL);
    bee_file_close(file);
    CHECK_EQ(error.status, status);
    CHECK_CONTAINS(error.message, part);
    require_sound_error(error.status, &error);
    CHECK(bee_file_open(path, NULL) == NULL);
}

static void test_paths(void) {
    char directory[] = "/tmp/bee-test-gguf-XXXXXX", path[128];
    REQUIRE(mkdtemp(directory));
    int before = open_descriptors();
    expect_path_failure(NULL, BEE_ERROR_ARGUMENT, "the path is empty");
    expect_path_failure("", BEE_ERROR_ARGUMENT, "the path is empty");
    expect_path_failure(directory, BEE_ERROR_FILE, "a directory; the path of a GGUF file is needed");
    expect_path_failure("/dev/null", BEE_ERROR_FILE, "a pipe or device");
    snprintf(path, sizeof path, "%s/missing.gguf", directory);
    expect_path_failure(path, BEE_ERROR_FILE, "missing.gguf: cannot be opened: No such file");
    snprintf(path, sizeof path, "%s/\xFFline\nbreak\xC3\xA4", directory);
    expect_path_failure(path, BEE_ERROR_FILE, "/?line?break\xC3\xA4: cannot be opened");
    char *long_path = copy_text(directory, strlen(directory));
    long_path = realloc(long_path, 3001);
    REQUIRE(long_path);
    for (size_t i = strlen(directory); i < 3000; i++) long_path[i] = i % 100 == 50 ? '/' : 'x';
    memcpy(long_path + 2990, "/end.gguf", 10);
    expect_path_failure(long_path, BEE_ERROR_FILE, "end.gguf: cannot be opened");
    free(long_path);

    snprintf(path, sizeof path, "%s/pipe", directory);
    REQUIRE(mkfifo(path, 0600) == 0);
    alarm(20); /* an open that waits for a writer ends the test */
    expect_path_failure(path, BEE_ERROR_FILE, "a pipe or device");
    alarm(0);
    unlink(path);

    snprintf(path, sizeof path, "%s/empty.gguf", directory);
    int descriptor = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    REQUIRE(descriptor >= 0);
    close(descriptor);
    expect_path_failure(path, BEE_ERROR_FORMAT, "the file is empty");
    unlink(path);
    rmdir(directory);
    CHECK_EQ(open_descriptors(), before);
}

static int mapped_files(void) {
    FILE *maps = fopen("/proc/self/maps", "r");
    REQUIRE(maps);
    char line[1024];
    int count = 0;
    while (fgets(line, sizeof line, maps)) count += strstr(line, "memfd:gguf") != NULL;
    fclose(maps);
    return count;
}

/* Nothing of a file is ever mapped: who shortens it would end this process. */
static void test_mappings(void) {
    const int before = open_descriptors();
    bee_file *file = EXPECT_FILE(sample_file());
    CHECK_EQ(mapped_files(), 0);
    bee_file_close(file);
    EXPECT_FAILURE(with_counts(5, 18), BEE_ERROR_FORMAT, "tensor entry 5 of 5");
    CHECK_EQ(open_descriptors(), before);
}

/* What was read stays; what was not is an error that says why. */
static void test_shortened_file(void) {
    const Bytes bytes = sample_file();
    const int descriptor = memfd_create("gguf", MFD_CLOEXEC);
    REQUIRE(descriptor >= 0 && write(descriptor, bytes.data, bytes.size) == (ssize_t)bytes.size);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor);
    bee_error error;
    bee_file *file = bee_file_open(path, &error);
    REQUIRE(file && ftruncate(descriptor, 100) == 0);
    Tensor tensor;
    uint8_t data[48];
    CHECK_EQ(gguf_tensor(file, "blk.0.conv.weight", &tensor, &error), BEE_OK);
    CHECK_EQ(gguf_read(&tensor, data, &error), BEE_ERROR_FILE);
    CHECK_CONTAINS(error.message, "truncated or overwritten");
    CHECK_CONTAINS(error.message, "byte 1152 is gone");
    bee_file_close(file);
    close(descriptor);
    free(bytes.data);
}

/* A file is usable after its path is gone, and two can be open at once. */
static void test_two_files(void) {
    bee_file *first = EXPECT_FILE(sample_file()), *second = EXPECT_FILE(sample_file());
    bee_file_close(first);
    exercise(second);
    bee_file_close(second);
}

static int write_sample(const char *path) {
    Bytes bytes = sample_file();
    FILE *file = fopen(path, "wb");
    bool written = file && fwrite(bytes.data, 1, bytes.size, file) == bytes.size;
    if (file && fclose(file) != 0) written = false;
    free(bytes.data);
    return written ? 0 : 1;
}

int main(int count, char **arguments) {
    if (count == 3 && strcmp(arguments[1], "--write-sample") == 0) return write_sample(arguments[2]);
    test_sample();
    test_small_files();
    test_floats_must_be_finite();
    test_strings_with_nul();
    test_vocabulary_hash();
    test_many_tensors();
    test_type_table();
    test_foreign_files();
    test_versions();
    test_counts();
    test_keys();
    test_long_key_in_message();
    test_value_types();
    test_arrays_out_of_bounds();
    test_alignments();
    test_tensor_names();
    test_tensor_shapes();
    test_sizes_that_overflow();
    test_data_outside_the_file();
    test_tensor_types();
    test_every_truncation();
    test_random_damage();
    test_paths();
    test_mappings();
    test_shortened_file();
    test_two_files();
    return check_report();
}
