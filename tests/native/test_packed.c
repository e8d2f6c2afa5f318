/* Tests of the files that packed weights are kept in: what was written is found again, and what is not whole, or not
 * for this model, is refused with the reason, whatever is wrong with it. */
#define _GNU_SOURCE
#include "check.h"
#include "file/checksum.h"
#include "file/packed.h"
#include "random.h"

#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

/* As packed.c has it: a change of its form is a change of these tests, and of VERSION. */
typedef struct Header {
    char magic[8];
    uint64_t version;
    PackedKey key;
    uint64_t n_entries, data_begin, data_bytes, tables, header;
} Header;

enum { PIECE = 2 << 20, N_WEIGHTS = 5 };

static const PackedKey key = {3, {{100, 200, 300, 400}, {5, 6, 7, 8}}};
static volatile uint64_t all_read;
static char directory[64], path[96];

/* One is empty, one ends in the middle of a piece, one is several long. */
static const uint64_t sizes[N_WEIGHTS] = {640, 0, 100, PIECE + 7, 2 * PIECE};
static uint8_t *contents;
static PackedWeight weights[N_WEIGHTS];

/* Of a file with all of them: four pieces. */
enum { TABLES_END = sizeof(Header) + 4 * 8 + N_WEIGHTS * 24 };

static void make_weights(void) {
    Random random = {1};
    uint64_t all = 0;
    for (int i = 0; i < N_WEIGHTS; i++) all += sizes[i];
    contents = malloc(all);
    for (uint64_t i = 0; i < all; i++) contents[i] = (uint8_t)random_bits(&random);
    for (uint64_t i = 0, at = 0; i < N_WEIGHTS; at += sizes[i++])
        weights[i] = (PackedWeight){1000 + i, sizes[i], contents + at};
}

static uint8_t *read_whole(const char *from, size_t *n) {
    struct stat about;
    const int descriptor = open(from, O_RDONLY);
    if (descriptor < 0 || fstat(descriptor, &about)) abort();
    uint8_t *bytes = malloc((size_t)about.st_size + 1);
    if (read(descriptor, bytes, (size_t)about.st_size) != about.st_size) abort();
    close(descriptor);
    *n = (size_t)about.st_size;
    return bytes;
}

static void write_whole(const uint8_t *bytes, size_t n) {
    const int descriptor = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (descriptor < 0 || write(descriptor, bytes, n) != (ssize_t)n) abort();
    close(descriptor);
}

static bool is_whole(const PackedFile *file) {
    for (uint64_t i = 0; i < packed_pieces(file); i++)
        if (!packed_piece_is_whole(file, i)) return false;
    return true;
}

/* Opens the file and reads all that it says it has, as an engine does. The reason why not is left in `message`; empty:
 * it was whole. */
static void exercise(const PackedKey *wanted, char message[256]) {
    bee_error reason = {.status = BEE_OK, .message = ""};
    PackedFile *file = packed_open(path, wanted, &reason);
    snprintf(message, 256, "%.255s", reason.message);
    if (!file) return;
    if (!is_whole(file)) snprintf(message, 256, "data");
    for (int i = 0; i < N_WEIGHTS; i++) {
        const uint8_t *data = packed_next(file, weights[i].what, weights[i].bytes);
        if (data) all_read += checksum(data, weights[i].bytes, 0);
    }
    packed_close(file);
}

static void check_refused(const char *reason) {
    char message[256];
    exercise(&key, message);
    CHECK_CONTAINS(message, reason);
}

static void test_what_was_written_is_found(void) {
    bee_error error = {.message = ""};
    CHECK_EQ(packed_open(path, &key, &error), NULL);
    CHECK_EQ(error.status, BEE_ERROR_ARGUMENT); /* there is none, which is nobody's fault */
    for (int time = 0; time < 2; time++) {      /* the second one takes the first one's place */
        CHECK_EQ(packed_write(path, &key, weights, N_WEIGHTS, &error), BEE_OK);
        PackedFile *file = packed_open(path, &key, &error);
        if (!CHECK(file)) return;
        CHECK(is_whole(file));
        for (int i = 0; i < N_WEIGHTS; i++) {
            CHECK(!packed_at_end(file));
            CHECK_EQ(packed_next(file, weights[i].what + 1, sizes[i]), NULL); /* another weight */
            CHECK_EQ(packed_next(file, weights[i].what, sizes[i] + 1), NULL); /* of another size */
            const uint8_t *data = packed_next(file, weights[i].what, sizes[i]);
            CHECK(data && (uintptr_t)data % 64 == 0 && !memcmp(data, weights[i].data, sizes[i]));
        }
        CHECK(packed_at_end(file));
        CHECK_EQ(packed_next(file, weights[0].what, sizes[0]), NULL);
        /* Who has it mapped goes on with it when another takes its place. */
        CHECK_EQ(packed_write(path, &key, weights, 1, &error), BEE_OK);
        CHECK(is_whole(file));
        packed_close(file);
    }
    CHECK_EQ(packed_write(path, &key, NULL, 0, &error), BEE_OK); /* a model without weights is none of its business */
    PackedFile *file = packed_open(path, &key, &error);
    CHECK(file && packed_at_end(file) && packed_pieces(file) == 0);
    packed_close(file);
}

/* Each field of the header, as it is and as somebody would leave it who knows the checksum. */
static void test_header(const uint8_t *bytes, size_t n) {
    static const struct {
        size_t at;
        const char *reason;
    } fields[] = {
        {offsetof(Header, magic), "no file of packed weights"},
        {offsetof(Header, version), "that of another version"},
        {offsetof(Header, key.form), "of another version, or for other instruction sets"},
        {offsetof(Header, key.models[0].size), "the model has changed"},
        {offsetof(Header, key.models[0].time), "the model has changed"},
        {offsetof(Header, key.models[0].beginning), "the model has changed"},
        {offsetof(Header, key.models[0].samples), "the model has changed"},
        {offsetof(Header, key.models[1].size), "the drafter's target has changed"},
        {offsetof(Header, key.models[1].samples), "the drafter's target has changed"},
        {offsetof(Header, n_entries), "begins in a wrong place"},
        {offsetof(Header, data_begin), "begins in a wrong place"},
        {offsetof(Header, data_bytes), "shorter or longer"},
        {offsetof(Header, tables), "checksum of its tables"},
    };
    uint8_t *copy = malloc(n);
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        for (int mend = 0; mend < 2; mend++) {
            Header *header = memcpy(copy, bytes, n);
            uint64_t field;
            memcpy(&field, copy + fields[i].at, sizeof field);
            field += fields[i].at == offsetof(Header, n_entries) ? 100000 : 1;
            memcpy(copy + fields[i].at, &field, sizeof field);
            if (mend) header->header = checksum(header, offsetof(Header, header), 0);
            write_whole(copy, n);
            check_refused(mend || i < 2 ? fields[i].reason : "the header's checksum");
        }
    const uint64_t large[] = {UINT64_MAX, UINT64_MAX / 2, UINT64_MAX / sizeof(Header), 1ull << 40, 1ull << 32};
    const size_t numbers[] = {offsetof(Header, n_entries), offsetof(Header, data_begin), offsetof(Header, data_bytes)};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        for (size_t j = 0; j < sizeof large / sizeof *large; j++) {
            Header *header = memcpy(copy, bytes, n);
            memcpy(copy + numbers[i], &large[j], sizeof large[j]);
            header->header = checksum(header, offsetof(Header, header), 0);
            write_whole(copy, n);
            check_refused("it");
        }
    free(copy);
}

enum { BEGIN = 1, BYTES = 2 }; /* words of an entry */

/* With right checksums. */
static void check_entry_refused(const uint8_t *bytes, size_t n, int entry, int word, uint64_t value) {
    uint8_t *copy = malloc(n);
    Header *header = memcpy(copy, bytes, n);
    const uint64_t n_pieces = (header->data_bytes + PIECE - 1) / PIECE;
    memcpy(copy + sizeof *header + 8 * n_pieces + 24 * (size_t)entry + 8 * (size_t)word, &value, sizeof value);
    header->tables = checksum(copy + sizeof *header, 8 * n_pieces + 24 * N_WEIGHTS, 0);
    header->header = checksum(header, offsetof(Header, header), 0);
    write_whole(copy, n);
    check_refused("lies in a wrong place");
    free(copy);
}

/* Weights that lie outside of the data, or on others. */
static void test_entries(const uint8_t *bytes, size_t n) {
    for (int entry = 0; entry < N_WEIGHTS; entry++) {
        const uint64_t begins[] = {1, 32, 64ull * PIECE, UINT64_MAX - 63, 1ull << 63};
        const uint64_t lengths[] = {64ull * PIECE, UINT64_MAX, UINT64_MAX - 64, 1ull << 63};
        for (size_t i = 0; i < sizeof begins / sizeof *begins; i++)
            check_entry_refused(bytes, n, entry, BEGIN, begins[i]);
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
            check_entry_refused(bytes, n, entry, BYTES, lengths[i]);
        if (entry) check_entry_refused(bytes, n, entry, BEGIN, 0);
    }
    check_entry_refused(bytes, n, 3, BYTES, PIECE + 128);
}

static void test_cut_and_damaged(const uint8_t *bytes, size_t n) {
    Random random = {2};
    char message[256];
    uint8_t *copy = malloc(n + 1);
    memcpy(copy, bytes, n);
    for (size_t cut = 0; cut < n; cut += cut < 500 ? 7 : 97001) {
        write_whole(copy, cut);
        check_refused("it");
    }
    write_whole(copy, n - 1);
    check_refused("shorter or longer");
    copy[n] = 0;
    write_whole(copy, n + 1);
    check_refused("shorter or longer");
    int found = 0;
    for (int i = 0; i < 400; i++) { /* a bit of the file, most often of what stands before the data */
        size_t at = (size_t)random_below(&random, TABLES_END + (i % 4 ? 0 : (int)n - PIECE));
        if (at >= TABLES_END) at += PIECE - TABLES_END; /* nothing lies in between */
        copy[at] ^= (uint8_t)(1 << random_below(&random, 8));
        write_whole(copy, n);
        exercise(&key, message);
        found += *message != 0;
        copy[at] = bytes[at];
    }
    CHECK_EQ(found, 400);
    write_whole(copy, n);
    exercise(&key, message);
    CHECK_TEXT(message, "");
    free(copy);
}

/* Random headers and tables with right checksums: nothing is read that is not there. */
static void test_random_headers(const uint8_t *bytes) {
    Random random = {3};
    const size_t n = PIECE + 512;
    uint8_t *copy = malloc(n);
    int refused = 0;
    for (int i = 0; i < 400; i++) {
        Header *header = memcpy(copy, bytes, n);
        uint64_t *fields[] = {&header->n_entries, &header->data_begin, &header->data_bytes};
        header->data_bytes = n - PIECE;
        for (int j = 0; j < 3; j++)
            if (!random_below(&random, 6)) *fields[j] = random_bits(&random) >> random_below(&random, 64);
        if (random_below(&random, 2)) header->n_entries = (uint64_t)random_below(&random, 2000);
        for (int j = 0; j < 16; j++) copy[sizeof *header + (size_t)random_below(&random, 400)] ^= (uint8_t)i;
        const uint64_t tables = 8 + 24 * header->n_entries;
        if (tables < PIECE) header->tables = checksum(copy + sizeof *header, tables, 0);
        header->header = checksum(header, offsetof(Header, header), 0);
        write_whole(copy, n);
        char message[256];
        exercise(&key, message);
        refused += *message != 0;
    }
    CHECK_EQ(refused, 400);
    free(copy);
}

static void test_other_files(void) {
    char message[256];
    unlink(path);
    CHECK(!mkdir(path, 0700));
    check_refused("no regular file");
    rmdir(path);
    CHECK(!mkfifo(path, 0600));
    check_refused("no regular file"); /* and nobody waits for a writer */
    unlink(path);
    write_whole((const uint8_t *)"GGUF", 4);
    exercise(&key, message);
    CHECK_CONTAINS(message, "shorter than its header");
}

/* Whoever owns the directory can do anything with what is in it; others cannot, but with their own files. */
static void test_other_users(void) {
    bee_error error = {.message = ""};
    char message[256];
    CHECK_EQ(packed_write(path, &key, weights, N_WEIGHTS, &error), BEE_OK);
    if (chown(path, 12345, (gid_t)-1)) return; /* only root can give files away */
    check_refused("another user's");
    CHECK(!chown(directory, 12345, (gid_t)-1));
    exercise(&key, message);
    CHECK_TEXT(message, "");
    CHECK(!chown(directory, geteuid(), (gid_t)-1));
    CHECK(!chown(path, geteuid(), (gid_t)-1));
}

static int files_in_directory(void) {
    char command[128], count[16] = "";
    snprintf(command, sizeof command, "ls %s | wc -l", directory);
    FILE *pipe = popen(command, "r");
    if (!pipe || !fgets(count, sizeof count, pipe)) abort();
    pclose(pipe);
    return atoi(count);
}

/* What cannot be written leaves nothing behind, and what was there stays. */
static void test_failures(void) {
    bee_error error = {.message = ""};
    CHECK_EQ(packed_write("/proc/none.packed", &key, weights, 1, &error), BEE_ERROR_FILE);
    CHECK_EQ(packed_write("/nowhere/at/all.packed", &key, weights, 1, &error), BEE_ERROR_FILE);
    CHECK_CONTAINS(error.message, "No such file");
    CHECK_EQ(packed_write(path, &key, weights, N_WEIGHTS, &error), BEE_OK);
    struct rlimit before, least;
    getrlimit(RLIMIT_FSIZE, &before);
    least = before;
    least.rlim_cur = PIECE + 12345;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &least);
    CHECK_EQ(packed_write(path, &key, weights, N_WEIGHTS, &error), BEE_ERROR_FILE);
    CHECK_CONTAINS(error.message, "too large");
    setrlimit(RLIMIT_FSIZE, &before);
    CHECK_EQ(files_in_directory(), 1);
    char message[256];
    exercise(&key, message);
    CHECK_TEXT(message, "");
    /* Of more bytes than any disk has: nothing is written. */
    const PackedWeight endless = {1, 1ull << 60, contents};
    CHECK_EQ(packed_write(path, &key, &endless, 1, &error), BEE_ERROR_FILE);
    CHECK_CONTAINS(error.message, "the disk has");
    CHECK_EQ(files_in_directory(), 1);
}

/* Every bit counts, and so does every place. */
static void test_checksum(void) {
    uint8_t bytes[200];
    Random random = {4};
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (uint8_t)random_bits(&random);
    for (size_t n = 0; n <= sizeof bytes; n++) {
        const uint64_t sum = checksum(bytes, n, 0);
        CHECK(sum != checksum(bytes, n, 1) && (n == 0 || sum != checksum(bytes, n - 1, 0)));
        for (size_t bit = 0; bit < 8 * n; bit++) {
            bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
            if (checksum(bytes, n, 0) == sum) CHECK(!"a bit does not count");
            bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        }
    }
    uint64_t words[32] = {0}; /* the top bits of two words of a lane, which products would lose */
    const uint64_t sum = checksum(words, sizeof words, 0);
    for (int i = 0; i < 24; i++) {
        words[i] ^= 1ull << 63, words[i + 8] ^= 1ull << 63;
        CHECK(checksum(words, sizeof words, 0) != sum);
        words[i] = words[i + 8] = 0;
    }
}

int main(void) {
    strcpy(directory, "/tmp/bee-packed-XXXXXX");
    if (!mkdtemp(directory)) return 1;
    snprintf(path, sizeof path, "%s/model.packed", directory);
    make_weights();
    test_checksum();
    test_what_was_written_is_found();
    bee_error error;
    CHECK_EQ(packed_write(path, &key, weights, N_WEIGHTS, &error), BEE_OK);
    size_t n;
    uint8_t *bytes = read_whole(path, &n);
    test_header(bytes, n);
    test_entries(bytes, n);
    test_cut_and_damaged(bytes, n);
    test_random_headers(bytes);
    test_other_files();
    test_other_users();
    test_failures();
    unlink(path);
    CHECK(!rmdir(directory));
    free(bytes);
    free(contents);
    return check_report();
}
