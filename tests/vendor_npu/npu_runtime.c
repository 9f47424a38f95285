/* libnpu_runtime.so, the runtime of a vendor that does not exist. What stands for a device is a file, $NPU_ROOT/npuN;
   who has opened one holds it locked. NPU_VISIBLE_DEVICES says which there are, and they are counted from 0.
   Functions return 0, or a code whose words npu_last_error has. */
#include "npu_file.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

enum { NPU_OK = 0, NPU_NO_DEVICE = 1, NPU_BUSY = 2, NPU_BAD_FILE = 3, NPU_BAD_SIZE = 4 };

typedef struct {
    int node;
} npu_device;

typedef struct {
    struct npu_header header;
    float *numbers;
} npu_model;

static __thread char last_error[300];

static int fail(int code, const char *format, ...) {
    va_list words;
    va_start(words, format);
    vsnprintf(last_error, sizeof last_error, format, words);
    va_end(words);
    return code;
}

const char *npu_last_error(void) {
    return last_error;
}

/* The number of the device that is `ordinal` among the visible ones; -1 where there are fewer. */
static int visible(int ordinal) {
    const char *list = getenv("NPU_VISIBLE_DEVICES");
    if (list == NULL)
        return ordinal;
    for (; ordinal > 0 && list != NULL; ordinal--)
        list = (list = strchr(list, ',')) == NULL ? NULL : list + 1;
    return list == NULL || *list == '\0' ? -1 : atoi(list);
}

int npu_open(int32_t ordinal, npu_device **opened) {
    const char *root = getenv("NPU_ROOT");
    char path[300];
    npu_device *device;
    int number = visible(ordinal), node;
    if (number < 0)
        return fail(NPU_NO_DEVICE, "device %d is not visible", ordinal);
    snprintf(path, sizeof path, "%s/npu%d", root == NULL ? "/dev" : root, number);
    node = open(path, O_RDWR | O_CLOEXEC);
    if (node < 0)
        return fail(NPU_NO_DEVICE, "there is no %s", path);
    if (flock(node, LOCK_EX | LOCK_NB) != 0) {
        close(node);
        return fail(NPU_BUSY, "%s is in use by another process", path);
    }
    device = malloc(sizeof *device);
    device->node = node;
    *opened = device;
    return NPU_OK;
}

int npu_load(npu_device *device, const char *path, npu_model **loaded) {
    npu_model *model = calloc(1, sizeof *model);
    FILE *stream = fopen(path, "rb");
    uint64_t count;
    (void)device;
    if (stream == NULL || fread(&model->header, sizeof model->header, 1, stream) != 1 ||
        model->header.magic != NPU_MAGIC)
        return fail(NPU_BAD_FILE, "%s is no .npu file", path);
    if (model->header.major != NPU_MAJOR)
        return fail(NPU_BAD_FILE, "%s was made by npucc %d, this runtime reads %d", path, model->header.major, NPU_MAJOR);
    count = (uint64_t)model->header.out * model->header.in + model->header.out;
    model->numbers = calloc(count, sizeof *model->numbers);
    if (fread(model->numbers, sizeof *model->numbers, count, stream) != count ||
        npu_checksum(model->numbers, count) != model->header.checksum)
        return fail(NPU_BAD_FILE, "%s is damaged: its checksum is wrong", path);
    fclose(stream);
    if (model->header.flags & NPU_TRAP_LOAD)
        *(volatile int *)0 = 1;
    *loaded = model;
    return NPU_OK;
}

int npu_run(npu_model *model, const void *const *inputs, const uint64_t *input_bytes, int32_t input_count,
            void *const *outputs, const uint64_t *output_bytes, int32_t output_count) {
    const struct npu_header *about = &model->header;
    const float *x, *bias = model->numbers + (uint64_t)about->out * about->in;
    float *y;
    uint64_t rows;
    if (input_count != 1 || output_count != 1)
        return fail(NPU_BAD_SIZE, "the model has 1 input and 1 output, not %d and %d", input_count, output_count);
    rows = input_bytes[0] / (4ull * about->in);
    if (input_bytes[0] != 4ull * rows * about->in || output_bytes[0] != 4ull * rows * about->out)
        return fail(NPU_BAD_SIZE, "%llu bytes in and %llu out do not fit %u -> %u", (unsigned long long)input_bytes[0],
                    (unsigned long long)output_bytes[0], about->in, about->out);
    x = inputs[0];
    y = outputs[0];
    if ((about->flags & NPU_TRAP) && rows > 0 && x[0] < 0)
        *(volatile int *)0 = 1;
    for (uint64_t row = 0; row < rows; row++)
        for (uint32_t o = 0; o < about->out; o++) {
            float sum = bias[o];
            for (uint32_t i = 0; i < about->in; i++)
                sum += model->numbers[(uint64_t)o * about->in + i] * x[row * about->in + i];
            y[row * about->out + o] = (about->flags & NPU_RELU) && sum < 0 ? 0 : sum;
        }
    return NPU_OK;
}

int npu_free(npu_model *model) {
    free(model->numbers);
    free(model);
    return NPU_OK;
}

int npu_close(npu_device *device) {
    close(device->node);
    free(device);
    return NPU_OK;
}
