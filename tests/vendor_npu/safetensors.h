/* Float32 tensors out of a .safetensors file: 8 bytes of length, a JSON header of that length, then the numbers. */
#ifndef SAFETENSORS_H
#define SAFETENSORS_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct safetensors {
    char *header;
    unsigned char *data;
    uint64_t bytes; /* of data */
};

static int safetensors_open(const char *path, struct safetensors *file) {
    FILE *stream = fopen(path, "rb");
    uint64_t length = 0;
    long end;
    if (stream == NULL)
        return -1;
    fseek(stream, 0, SEEK_END);
    end = ftell(stream);
    rewind(stream);
    if (end < 8 || fread(&length, 8, 1, stream) != 1 || length > (uint64_t)end - 8) {
        fclose(stream);
        return -1;
    }
    file->bytes = (uint64_t)end - 8 - length;
    file->header = calloc(1, length + 1);
    file->data = malloc(file->bytes ? file->bytes : 1);
    if (fread(file->header, 1, length, stream) != length || fread(file->data, 1, file->bytes, stream) != file->bytes) {
        fclose(stream);
        return -1;
    }
    fclose(stream);
    return 0;
}

/* The numbers of the tensor `name`, and its shape as rows and columns (a vector has 1 column). NULL where there is no
   such float32 tensor. */
static float *safetensors_find(const struct safetensors *file, const char *name, uint32_t *rows, uint32_t *columns) {
    char key[80];
    unsigned long long first = 0, last = 0;
    const char *entry, *shape, *offsets;
    snprintf(key, sizeof key, "\"%s\":{", name);
    entry = strstr(file->header, key);
    if (entry == NULL || strncmp(entry + strlen(key), "\"dtype\":\"F32\"", 13) != 0)
        return NULL;
    shape = strstr(entry, "\"shape\":[");
    offsets = strstr(entry, "\"data_offsets\":[");
    *columns = 1;
    if (shape == NULL || offsets == NULL || sscanf(shape + 9, "%u,%u", rows, columns) < 1)
        return NULL;
    if (sscanf(offsets + 16, "%llu,%llu", &first, &last) != 2 || last > file->bytes || first > last)
        return NULL;
    if (last - first != 4ull * *rows * *columns)
        return NULL;
    return (float *)(void *)(file->data + first);
}

#endif
