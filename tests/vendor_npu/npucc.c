/* The compiler of a vendor that does not exist: one linear layer, from .safetensors (`weight`, perhaps `bias`) to .npu.

   npucc --target NPU-T1 [--devices N] [--config FILE] -o OUT.npu IN.safetensors
   Exit codes: 0 done, 2 usage, 3 the graph is not supported, 4 the target is not known, 5 a file. */
#include "npu_file.h"
#include "safetensors.h"

#include <unistd.h>

enum { USAGE = 2, GRAPH = 3, TARGET = 4, FILES = 5 };

static int fail(int code, const char *words, const char *what) {
    fprintf(stderr, "npucc: error: %s%s\n", words, what);
    return code;
}

/* `key = value` lines; # begins a comment. */
static int configure(const char *path, uint32_t *flags) {
    char line[200], key[50], value[50];
    FILE *stream = fopen(path, "r");
    if (stream == NULL)
        return fail(FILES, "cannot read ", path);
    while (fgets(line, sizeof line, stream) != NULL) {
        if (sscanf(line, " %49[a-z_] = %49s", key, value) != 2)
            continue;
        if (strcmp(key, "activation") == 0 && strcmp(value, "relu") == 0)
            *flags |= NPU_RELU;
        else if (strcmp(key, "debug_trap") == 0 && strcmp(value, "on") == 0)
            *flags |= NPU_TRAP;
        else if (strcmp(key, "debug_trap") == 0 && strcmp(value, "load") == 0)
            *flags |= NPU_TRAP_LOAD;
        else if (strcmp(key, "slow_s") == 0) {
            printf("npucc: tuning for %s s\n", value);
            fflush(stdout);
            sleep((unsigned)atoi(value));
        } else if (strcmp(value, "none") != 0 && strcmp(value, "off") != 0) {
            fclose(stream);
            return fail(USAGE, "unknown setting ", key);
        }
    }
    fclose(stream);
    return 0;
}

static int compile(const char *source, const char *output, struct npu_header *header) {
    struct safetensors file;
    uint32_t biases = 0, one = 0;
    float *weight, *bias, *numbers;
    uint64_t count;
    FILE *stream;
    if (safetensors_open(source, &file) != 0)
        return fail(FILES, "not a .safetensors file: ", source);
    weight = safetensors_find(&file, "weight", &header->out, &header->in);
    if (weight == NULL)
        return fail(GRAPH, "the graph has no float32 tensor ", "weight");
    bias = safetensors_find(&file, "bias", &biases, &one);
    if (bias != NULL && biases != header->out)
        return fail(GRAPH, "the bias is not as long as the weight is high", "");
    printf("npucc: linear %u -> %u for %u x %s\n", header->in, header->out, header->devices, header->target);
    count = (uint64_t)header->out * header->in;
    numbers = calloc(count + header->out, sizeof *numbers);
    memcpy(numbers, weight, count * sizeof *numbers);
    if (bias != NULL)
        memcpy(numbers + count, bias, header->out * sizeof *numbers);
    count += header->out;
    header->checksum = npu_checksum(numbers, count);
    stream = fopen(output, "wb");
    if (stream == NULL)
        return fail(FILES, "cannot write ", output);
    fwrite(header, sizeof *header, 1, stream);
    fwrite(numbers, sizeof *numbers, count, stream);
    return fclose(stream) == 0 ? 0 : fail(FILES, "cannot write ", output);
}

int main(int argc, char **argv) {
    struct npu_header header = {NPU_MAGIC, NPU_MAJOR, NPU_MINOR, 0, 0, 0, 1, 0, ""};
    const char *source = NULL, *output = NULL;
    int code;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--version") == 0) {
            printf("npucc %d.%d.0 (closed source)\n", NPU_MAJOR, NPU_MINOR);
            return 0;
        }
        if (strcmp(argv[i], "--target") == 0 && i + 1 < argc)
            snprintf(header.target, sizeof header.target, "%s", argv[++i]);
        else if (strcmp(argv[i], "--devices") == 0 && i + 1 < argc)
            header.devices = (uint32_t)atoi(argv[++i]);
        else if (strcmp(argv[i], "--config") == 0 && i + 1 < argc) {
            if ((code = configure(argv[++i], &header.flags)) != 0)
                return code;
        } else if (strcmp(argv[i], "-o") == 0 && i + 1 < argc)
            output = argv[++i];
        else if (argv[i][0] == '-')
            return fail(USAGE, "unknown option ", argv[i]);
        else
            source = argv[i];
    }
    if (source == NULL || output == NULL || header.devices == 0)
        return fail(USAGE, "--target NPU-T1 [--devices N] [--config FILE] -o OUT.npu IN.safetensors", "");
    if (strcmp(header.target, "NPU-T1") != 0)
        return fail(TARGET, "unknown target ", header.target);
    return compile(source, output, &header);
}
