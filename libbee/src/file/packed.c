#define _GNU_SOURCE
#include "packed.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "checksum.h"
#include "error.h"

enum {
    VERSION = 1, /* of the file's form */
    /* A huge page. Some systems keep what is written at once together, and map it as one, if it begins at a multiple.
     */
    PIECE = 2 << 20,
    DATA_BEGINS = PIECE,
    WEIGHT_ALIGNMENT = 64,
    MAX_WEIGHTS = 1 << 22,
    LEFT_FREE = 64 << 20, /* bytes of the disk */
};

/* Little-endian, as all machines that run this are. */
typedef struct PackedHeader {
    char magic[8]; /* "bee:pack" */
    uint64_t version;
    PackedKey key;
    uint64_t n_entries, data_begin, data_bytes;
    uint64_t tables; /* checksum of checksums and entries */
    uint64_t header; /* checksum of all the above */
} PackedHeader;

typedef struct PackedEntry {
    uint64_t what, begin, bytes;
} PackedEntry;

struct PackedFile {
    const uint8_t *bytes; /* mapped */
    uint64_t size;
    PackedHeader header;
    const PackedEntry *entries;
    const uint64_t *checksums;
    uint64_t n_taken;
};

static uint64_t aligned(uint64_t bytes, uint64_t alignment) { return (bytes + alignment - 1) / alignment * alignment; }

static uint64_t pieces_of(uint64_t data_bytes) { return data_bytes / PIECE + (data_bytes % PIECE ? 1 : 0); }

/* Checksums and entries; the numbers are small enough. */
static uint64_t tables_bytes(const PackedHeader *h) {
    return pieces_of(h->data_bytes) * sizeof(uint64_t) + h->n_entries * sizeof(PackedEntry);
}

static uint64_t data_place(const PackedHeader *h) { return aligned(sizeof *h + tables_bytes(h), DATA_BEGINS); }

static uint64_t header_checksum(const PackedHeader *h) { return checksum(h, offsetof(PackedHeader, header), 0); }

/* That the file lies in. -1: it cannot be opened. */
static int open_directory(const char *path) {
    char *directory = strdup(path), *slash = directory ? strrchr(directory, '/') : NULL;
    if (slash) slash[slash == directory] = 0;
    const int descriptor = slash ? open(directory, O_RDONLY | O_CLOEXEC | O_DIRECTORY) : -1;
    free(directory);
    return descriptor;
}

/* ---- reading -------------------------------------------------------------------------------------- */

static bee_status refuse(bee_error *reason, const char *why) { return bee_fail(reason, BEE_ERROR_FORMAT, "%s", why); }

static bee_status check_key(const PackedKey *found, const PackedKey *wanted, bee_error *reason) {
    static const char *const whose[] = {"the model", "the drafter's target"};
    if (found->form != wanted->form) return refuse(reason, "it is of another version, or for other instruction sets");
    for (int i = 0; i < 2; i++)
        if (memcmp(&found->models[i], &wanted->models[i], sizeof found->models[i]))
            return bee_fail(reason, BEE_ERROR_FORMAT, "%s has changed since it was packed", whose[i]);
    return BEE_OK;
}

static bee_status check_header(const PackedFile *f, const PackedKey *key, bee_error *reason) {
    const PackedHeader *h = &f->header;
    if (memcmp(h->magic, "bee:pack", sizeof h->magic)) return refuse(reason, "it is no file of packed weights");
    if (h->version != VERSION) return refuse(reason, "its form is that of another version");
    if (h->header != header_checksum(h)) return refuse(reason, "the header's checksum is wrong");
    const bee_status status = check_key(&h->key, key, reason);
    if (status) return status;
    if (h->n_entries > MAX_WEIGHTS) return refuse(reason, "the number of its weights is out of range");
    if (h->data_bytes > f->size) return refuse(reason, "it is shorter than its data");
    if (h->data_begin != data_place(h)) return refuse(reason, "its data begins in a wrong place");
    if (h->data_begin > f->size || f->size - h->data_begin != h->data_bytes)
        return refuse(reason, "it is shorter or longer than it should be");
    return BEE_OK;
}

static bee_status check_tables(const PackedFile *f, bee_error *reason) {
    const PackedHeader *h = &f->header;
    if (h->tables != checksum(f->bytes + sizeof *h, tables_bytes(h), 0))
        return refuse(reason, "the checksum of its tables is wrong");
    uint64_t end = 0;
    for (uint64_t i = 0; i < h->n_entries; i++) {
        const PackedEntry *e = &f->entries[i];
        if (e->begin % WEIGHT_ALIGNMENT || e->begin < end || e->begin > h->data_bytes ||
            e->bytes > h->data_bytes - e->begin)
            return bee_fail(reason, BEE_ERROR_FORMAT, "weight %llu lies in a wrong place", (unsigned long long)i);
        end = e->begin + e->bytes;
    }
    return BEE_OK;
}

/* At a multiple of a huge page's size, for systems that have such pages of files. */
static const uint8_t *map_file(int descriptor, uint64_t size) {
    uint8_t *room = mmap(NULL, size + PIECE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (room == MAP_FAILED) return NULL;
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), end = aligned(size + PIECE, page);
    const uint64_t before = (PIECE - (uintptr_t)room % PIECE) % PIECE, kept = aligned(size, page);
    uint8_t *at = room + before;
    if (mmap(at, size, PROT_READ, MAP_PRIVATE | MAP_FIXED, descriptor, 0) == MAP_FAILED) {
        munmap(room, size + PIECE);
        return NULL;
    }
    if (before) munmap(room, before);
    if (end > before + kept) munmap(at + kept, end - before - kept);
#ifdef MADV_HUGEPAGE
    madvise(at, size, MADV_HUGEPAGE);
#endif
    return at;
}

/* Who may neither be this user, nor do in the directory what he likes: who wrote a file can cut it while it is mapped.
 */
static bool is_strangers(const char *path, uid_t owner) {
    struct stat about;
    if (owner == geteuid() || owner == 0) return false;
    const int directory = open_directory(path);
    if (directory < 0) return true;
    const bool known = !fstat(directory, &about) && about.st_uid == owner;
    close(directory);
    return !known;
}

static bee_status read_file(PackedFile *f, const char *path, int descriptor, bee_error *reason) {
    struct stat about;
    if (fstat(descriptor, &about)) return bee_fail(reason, BEE_ERROR_FILE, "it cannot be read: %s", strerror(errno));
    if (!S_ISREG(about.st_mode)) return refuse(reason, "it is no regular file");
    if (is_strangers(path, about.st_uid)) return refuse(reason, "it is another user's");
    f->size = (uint64_t)about.st_size;
    if (f->size < sizeof f->header) return refuse(reason, "it is shorter than its header");
    if (pread(descriptor, &f->header, sizeof f->header, 0) != (ssize_t)sizeof f->header)
        return bee_fail(reason, BEE_ERROR_FILE, "it cannot be read: %s", strerror(errno));
    return BEE_OK;
}

/* The header comes first, and is read, not mapped: what it says bounds what is mapped. */
static bee_status open_file(PackedFile *f, const char *path, const PackedKey *key, bee_error *reason) {
    const int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0)
        return bee_fail(reason, errno == ENOENT ? BEE_ERROR_ARGUMENT : BEE_ERROR_FILE, "it cannot be opened: %s",
                        strerror(errno));
    bee_status status = read_file(f, path, descriptor, reason);
    if (!status) status = check_header(f, key, reason);
    if (!status && !(f->bytes = map_file(descriptor, f->size)))
        status = bee_fail(reason, BEE_ERROR_FILE, "it cannot be mapped: %s", strerror(errno));
    close(descriptor);
    if (status) return status;
    f->checksums = (const uint64_t *)(const void *)(f->bytes + sizeof f->header);
    f->entries = (const PackedEntry *)(const void *)(f->checksums + packed_pieces(f));
    return check_tables(f, reason);
}

PackedFile *packed_open(const char *path, const PackedKey *key, bee_error *reason) {
    PackedFile *f = calloc(1, sizeof *f);
    if (!f) {
        bee_fail(reason, BEE_ERROR_MEMORY, "out of memory");
        return NULL;
    }
    if (open_file(f, path, key, reason) == BEE_OK) return f;
    packed_close(f);
    return NULL;
}

void packed_close(PackedFile *f) {
    if (f && f->bytes) munmap((void *)f->bytes, f->size);
    free(f);
}

uint64_t packed_pieces(const PackedFile *f) { return pieces_of(f->header.data_bytes); }

bool packed_piece_is_whole(const PackedFile *f, uint64_t piece) {
    const uint64_t begin = piece * PIECE, left = f->header.data_bytes - begin;
    const uint8_t *at = f->bytes + f->header.data_begin + begin;
    const size_t n = left < PIECE ? left : PIECE;
#ifdef MADV_POPULATE_READ
    /* All pages at once; and a file that was cut short meanwhile, or a disk that fails, is an error here and not a
     * signal. */
    if (madvise((void *)at, n, MADV_POPULATE_READ) && (errno == EFAULT || errno == EIO || errno == EHWPOISON))
        return false;
#endif
    return checksum(at, n, 0) == f->checksums[piece];
}

const uint8_t *packed_next(PackedFile *f, uint64_t what, uint64_t bytes) {
    if (packed_at_end(f)) return NULL;
    const PackedEntry *e = &f->entries[f->n_taken];
    if (e->what != what || e->bytes != bytes) return NULL;
    f->n_taken++;
    return f->bytes + f->header.data_begin + e->begin;
}

bool packed_at_end(const PackedFile *f) { return f->n_taken == f->header.n_entries; }

/* ---- writing -------------------------------------------------------------------------------------- */

/* What is being written: the tables, and the piece that is not full yet. */
typedef struct Writer {
    int descriptor;
    PackedHeader header;
    uint8_t *tables; /* checksums and entries */
    uint8_t *piece;
    uint64_t written; /* of the data, the piece included */
} Writer;

static bool write_at(int descriptor, const void *bytes, uint64_t size, uint64_t offset) {
    for (uint64_t done = 0; done < size;) {
        const ssize_t n = pwrite(descriptor, (const uint8_t *)bytes + done, size - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        done += (uint64_t)n;
    }
    return true;
}

/* The piece that ends at w->written. */
static bool write_piece(Writer *w) {
    const uint64_t index = (w->written - 1) / PIECE, begin = index * PIECE, n = w->written - begin;
    const uint64_t sum = checksum(w->piece, n, 0);
    memcpy(w->tables + index * sizeof sum, &sum, sizeof sum);
    return write_at(w->descriptor, w->piece, n, w->header.data_begin + begin);
}

static bool write_data(Writer *w, const uint8_t *data, uint64_t bytes) {
    for (uint64_t done = 0; done < bytes;) {
        const uint64_t at = w->written % PIECE, left = PIECE - at, n = left < bytes - done ? left : bytes - done;
        if (data)
            memcpy(w->piece + at, data + done, n);
        else
            memset(w->piece + at, 0, n);
        done += n;
        w->written += n;
        if (w->written % PIECE == 0 && !write_piece(w)) return false;
    }
    return true;
}

static bool write_weights(Writer *w, const PackedWeight *weights, uint64_t n) {
    PackedEntry *entries = (PackedEntry *)(void *)(w->tables + pieces_of(w->header.data_bytes) * sizeof(uint64_t));
    for (uint64_t i = 0; i < n; i++) {
        if (!write_data(w, NULL, aligned(w->written, WEIGHT_ALIGNMENT) - w->written)) return false;
        entries[i] = (PackedEntry){weights[i].what, w->written, weights[i].bytes};
        if (!write_data(w, weights[i].data, weights[i].bytes)) return false;
    }
    return w->written % PIECE == 0 || write_piece(w);
}

/* The header last: without it nobody takes the file for one. */
static bool write_all(Writer *w, const PackedWeight *weights, uint64_t n) {
    PackedHeader *h = &w->header;
    if (!write_weights(w, weights, n)) return false;
    h->tables = checksum(w->tables, tables_bytes(h), 0);
    h->header = header_checksum(h);
    return write_at(w->descriptor, w->tables, tables_bytes(h), sizeof *h) && write_at(w->descriptor, h, sizeof *h, 0) &&
           !fsync(w->descriptor);
}

static PackedHeader plan_header(const PackedKey *key, const PackedWeight *weights, uint64_t n) {
    PackedHeader h = {.version = VERSION, .key = *key, .n_entries = n};
    memcpy(h.magic, "bee:pack", sizeof h.magic);
    for (uint64_t i = 0; i < n; i++) h.data_bytes = aligned(h.data_bytes, WEIGHT_ALIGNMENT) + weights[i].bytes;
    h.data_begin = data_place(&h);
    return h;
}

static bee_status check_room(int descriptor, uint64_t needed, bee_error *error) {
    struct statvfs disk;
    if (fstatvfs(descriptor, &disk)) return BEE_OK; /* writing will tell */
    const uint64_t there = (uint64_t)disk.f_bavail * disk.f_frsize;
    if (there >= needed && there - needed >= LEFT_FREE) return BEE_OK;
    return bee_fail(error, BEE_ERROR_FILE, "the disk has %.2f GB left, and it takes %.2f GB", 1e-9 * (double)there,
                    1e-9 * (double)needed);
}

/* The directory knows the new name only when it was written, too. Where that fails, the file is still whole or absent.
 */
static void sync_directory(const char *path) {
    const int descriptor = open_directory(path);
    if (descriptor >= 0) fsync(descriptor), close(descriptor);
}

static bee_status write_to(Writer *w, const char *temporary, const char *path, const PackedWeight *weights, uint64_t n,
                           bee_error *error) {
    const PackedHeader *h = &w->header;
    const bee_status status = check_room(w->descriptor, h->data_begin + h->data_bytes, error);
    if (status) return status;
    w->tables = malloc(tables_bytes(h) + 1);
    w->piece = malloc(PIECE);
    if (!w->tables || !w->piece) return bee_fail(error, BEE_ERROR_MEMORY, "out of memory");
    if (!ftruncate(w->descriptor, (off_t)(h->data_begin + h->data_bytes)) && write_all(w, weights, n) &&
        !rename(temporary, path))
        return BEE_OK;
    return bee_fail(error, BEE_ERROR_FILE, "%s", strerror(errno));
}

bee_status packed_write(const char *path, const PackedKey *key, const PackedWeight *weights, uint64_t n,
                        bee_error *error) {
    const size_t length = strlen(path);
    char *temporary = malloc(length + 8);
    if (!temporary) return bee_fail(error, BEE_ERROR_MEMORY, "out of memory");
    memcpy(temporary, path, length);
    memcpy(temporary + length, ".XXXXXX", 8);
    Writer w = {.descriptor = mkostemp(temporary, O_CLOEXEC), .header = plan_header(key, weights, n)};
    bee_status status = w.descriptor < 0 ? bee_fail(error, BEE_ERROR_FILE, "%s", strerror(errno))
                                         : write_to(&w, temporary, path, weights, n, error);
    if (w.descriptor >= 0) {
        close(w.descriptor);
        if (status)
            unlink(temporary);
        else
            sync_directory(path);
    }
    free(w.tables);
    free(w.piece);
    free(temporary);
    return status;
}
