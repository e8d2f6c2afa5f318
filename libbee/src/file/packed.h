/* A file of packed weights, from which they are mapped. What is in it, and for which model, only its user knows: here a
 * weight is a number that says which one it is, and some bytes.
 *
 *   | header | a checksum of each piece | entries, one of each weight | a hole | data |
 *
 *   header:  PackedHeader
 *   piece:   2 MiB of the data, the last one what is left
 *   entry:   PackedEntry, in the order in which the model asks for its weights
 *   data:    begins at a multiple of 2 MiB; in it weights at multiples of 64, zeros between them
 *
 * Files are hostile, but these are no stranger's: one that belongs neither to this user, nor to root, nor to the
 * directory's owner is refused. All of one is checked when it is opened, its data by whoever has threads for it
 * (packed_piece_is_whole), so that a disk's or an editor's damage is found; who can write a checksum can write a model.
 * It must not be written over or cut short while it is mapped: packed_write puts a new file in the old one's place, and
 * those who have that go on with it. */
#ifndef BEE_PACKED_FILE_H
#define BEE_PACKED_FILE_H

#include "file/gguf.h"

/* What the weights were packed from, and how. */
typedef struct PackedKey {
    uint64_t form;          /* of the layouts: a backend's number */
    FileIdentity models[2]; /* a model's file; of a drafter its target's file, too, whose rows its head may have */
} PackedKey;

typedef struct PackedFile PackedFile;

/* Maps a file and checks all of it but its data. NULL with the reason. */
PackedFile *packed_open(const char *path, const PackedKey *key, bee_error *reason);
void packed_close(PackedFile *file);
uint64_t packed_pieces(const PackedFile *file);
/* Reads a piece of the data. False where its checksum is another, or the system cannot read it. */
bool packed_piece_is_whole(const PackedFile *file, uint64_t piece);

/* The weight that comes next; NULL where that is another one. The bytes are 64-byte aligned. */
const uint8_t *packed_next(PackedFile *file, uint64_t what, uint64_t bytes);
bool packed_at_end(const PackedFile *file);

typedef struct PackedWeight {
    uint64_t what, bytes;
    const uint8_t *data;
} PackedWeight;

/* Writes the file, whole or not at all. */
bee_status packed_write(const char *path, const PackedKey *key, const PackedWeight *weights, uint64_t n,
                        bee_error *error);

#endif
