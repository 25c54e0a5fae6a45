/* unet_fast: run a frozen U-Net (.unet file) from C.
 *
 *     uf_engine *engine = NULL;
 *     if (uf_engine_open("cells.unet", NULL, &engine) != UF_OK) { fprintf(stderr, "%s\n", uf_last_error()); return 1; }
 *     uf_image image = {sizeof image};   image.data = pixels;  image.dtype = UF_UINT8;
 *     image.height = 256;  image.width = 256;  image.channels = 1;
 *     uf_output mask = {sizeof mask};    mask.data = result;   mask.dtype = UF_UINT8;
 *     if (uf_segment(engine, &image, NULL, &mask) != UF_OK) fprintf(stderr, "%s\n", uf_last_error());
 *     uf_engine_close(engine);
 *
 * Conventions, once for all functions:
 *
 * Status    Every function that can fail returns a uf_status; UF_OK is 0.  After a failure uf_last_error() of the same
 *           thread says what was wrong, what is accepted and how to fix it; outputs named `uf_... **` are set to NULL,
 *           image buffers hold unspecified values.  Nothing prints, aborts or throws, and an engine stays usable
 *           unless the status is UF_ERR_DEVICE_LOST.
 * Handles   uf_engine and uf_context are opaque.  The caller closes what he opened; closing NULL does nothing.
 *           An engine may be closed before its contexts: it lives until the last of them is destroyed.
 * Structs   begin with `struct_size`, which the caller sets to sizeof; every other field may be zero, which means the
 *           default.  Fields are only ever appended.
 * Memory    The library keeps no pointer to a caller's image or output after the call (uf_enqueue: after the work).
 *           Pixels need no alignment beyond that of their type.
 * Threads   Any thread may use an engine, many at once.  A context serves one call at a time; a second one gets
 *           UF_ERR_BUSY.
 * Sizes     are in pixels, strides in bytes.  height x width is rows x columns.
 */
#ifndef UNET_FAST_H
#define UNET_FAST_H

#include <stddef.h>
#include <stdint.h>

#define UF_VERSION_MAJOR 0
#define UF_VERSION_MINOR 1
#define UF_VERSION_PATCH 0

#if defined(__GNUC__)
#define UF_API __attribute__((visibility("default")))
#else
#define UF_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum uf_status {
    UF_OK = 0,
    UF_ERR_INVALID_ARGUMENT = 1, /* a NULL, a size, a stride, a dtype or a pixel value (NaN) that is not accepted */
    UF_ERR_IO = 2,               /* the file cannot be opened or read */
    UF_ERR_BAD_FILE = 3,         /* not an engine file, or a damaged one */
    UF_ERR_VERSION = 4,          /* written by a newer unet_fast than this library reads */
    UF_ERR_UNSUPPORTED = 5,   /* this machine or file lacks what was asked for (device, instruction set, precision) */
    UF_ERR_OUT_OF_MEMORY = 6, /* host or device memory */
    UF_ERR_BUSY = 7,          /* the context is in use by another thread */
    UF_ERR_DEVICE = 8,        /* a call to the GPU driver failed; the engine is still usable */
    UF_ERR_DEVICE_LOST = 9,   /* the GPU is gone; the engine can only be closed */
    UF_ERR_INTERNAL = 10      /* a defect of this library */
} uf_status;

typedef enum uf_dtype { UF_UINT8 = 1, UF_UINT16 = 2, UF_FLOAT32 = 3 } uf_dtype;
typedef enum uf_memory { UF_MEMORY_HOST = 0, UF_MEMORY_CUDA = 1 } uf_memory;

/* How an image that is not of the network's own size is treated. */
typedef enum uf_tiling {
    UF_TILING_FAST = 0,   /* tiles of the trained size, overlapping, probabilities blended linearly */
    UF_TILING_EXACT = 1,  /* tiles with a halo of context: the same result as the whole image in one pass */
    UF_TILING_RESIZE = 2, /* the image is resized to the trained size, the probability back (bilinear) */
    UF_TILING_NONE = 3    /* one pass over the whole image, whose size must be legal for the network; a network with
                             valid padding returns its own, smaller size */
} uf_tiling;

typedef struct uf_engine uf_engine;
typedef struct uf_context uf_context;

/* How an engine is opened. */
typedef struct uf_options {
    size_t struct_size;
    const char *device;    /* "auto" (default), "cpu", "cpu-reference" (slow, obvious loops), "cuda", "cuda:1" */
    const char *precision; /* "auto" (default): the fastest that the file allows here; "float32", "bf16", "fp16" */
    const char *cpu_isa;   /* "auto" (default): the best of this CPU; "portable", "avx2", "avx512", "avx512_bf16",
                              "neon": at most that, for tests and comparisons */
    int32_t threads;       /* CPU threads; 0: one per physical core that this process may use */
    int32_t refuse_embedded_code; /* non-zero: ignore GPU code in the file, run on the CPU */
} uf_options;

/* An image, or a batch of them, in host memory or that of the GPU the engine runs on.  Channels are interleaved (HWC)
 * by default; for planar images set channel_stride_bytes and pixel_stride_bytes.  Negative strides are accepted. */
typedef struct uf_image {
    size_t struct_size;
    const void *data;             /* first channel of the first pixel of the first image */
    int32_t dtype;                /* uf_dtype */
    int32_t memory;               /* uf_memory */
    int32_t count;                /* images in the batch; 0 means 1 */
    int32_t height, width;        /* >= 1 */
    int32_t channels;             /* must equal the network's; 0 means just that */
    int64_t image_stride_bytes;   /* 0: one image after the other */
    int64_t row_stride_bytes;     /* 0: width * pixel stride */
    int64_t pixel_stride_bytes;   /* 0: channels * size of dtype */
    int64_t channel_stride_bytes; /* 0: size of dtype */
    float max_value;              /* what counts as white; 0: 255, 65535 or 1.0 by dtype.  4095 for a 12-bit camera */
} uf_image;

/* Where a result goes: mask (UF_UINT8; count x height x width) or probability (UF_FLOAT32; count x height x width x
 * output channels, channels innermost).  Height and width are those of uf_output_size(): the image's own, except for
 * UF_TILING_NONE with valid padding. */
typedef struct uf_output {
    size_t struct_size;
    void *data;
    int32_t dtype;  /* UF_UINT8: mask, 0 or 255 for one class, else class indices; UF_FLOAT32: probability */
    int32_t memory; /* uf_memory */
    int64_t image_stride_bytes; /* 0: one after the other */
    int64_t row_stride_bytes;   /* 0: tight */
} uf_output;

/* How one call treats its image. */
typedef struct uf_run_options {
    size_t struct_size;
    int32_t tiling;  /* uf_tiling */
    int32_t tile;    /* side of a tile; 0: the trained size (fast), up to 1024 (exact) */
    int32_t overlap; /* UF_TILING_FAST: pixels that neighbouring tiles share; 0: an eighth of the tile */
    float threshold; /* probability above which a pixel is foreground, in (0, 1); 0: the file's, usually 0.5 */
} uf_run_options;

/* What an engine is.  Strings live as long as the engine. */
typedef struct uf_info {
    size_t struct_size;
    int32_t channels;                     /* of the image, 1..4 */
    int32_t output_channels;              /* of the probability */
    int32_t output_kind;                  /* 0 sigmoid, 1 softmax, 2 identity (regression: no mask) */
    int32_t tile;                         /* side of the images that the network was trained on */
    int32_t multiple, remainder, minimum; /* legal sides for one pass: n >= minimum and n % multiple == remainder */
    int32_t margin;                       /* pixels that valid padding takes off each side */
    int32_t halo; /* pixels of context for exact tiles; -1: this network cannot be tiled exactly */
    int32_t threads;
    int32_t op_count;
    float threshold;
    const char *name;
    const char *device;        /* "cpu", "cpu-reference" or "cuda:N" */
    const char *device_reason; /* why this device was chosen, one sentence */
    const char *precision;     /* "float32", "bf16" or "fp16" */
    const char *cpu_isa;       /* "portable", "avx2", "avx512", "avx512_bf16", "neon" */
} uf_info;

/* Version of the library as "0.1.0". */
UF_API const char *uf_version(void);

/* Message of the last failure on this thread, "" if none; valid until the next failing call of this thread. */
UF_API const char *uf_last_error(void);

/* Name of a status, as "UF_ERR_BAD_FILE"; "unknown status" for other numbers. */
UF_API const char *uf_status_name(uf_status status);

/* Opens an engine file: reads and checks it, picks the device, packs the weights.  `options` may be NULL. */
UF_API uf_status uf_engine_open(const char *path, const uf_options *options, uf_engine **engine);

/* Like uf_engine_open, but from memory, which may be freed after the call.  Any alignment. */
UF_API uf_status uf_engine_open_memory(const void *data, size_t size_bytes, const uf_options *options,
                                       uf_engine **engine);

UF_API void uf_engine_close(uf_engine *engine);

/* Fills `info`, whose struct_size the caller has set. */
UF_API uf_status uf_engine_info(const uf_engine *engine, uf_info *info);

/* Size of the result for an image of height x width. */
UF_API uf_status uf_output_size(const uf_engine *engine, int32_t height, int32_t width, const uf_run_options *options,
                                int32_t *output_height, int32_t *output_width);

/* Segments an image or batch into a mask or, for a UF_FLOAT32 output, into probabilities.  `options` may be NULL.
 * Images and results in batch positions are independent: each equals what it would be alone, bit for bit.
 * On a GPU this comes after work on the legacy default stream; what other streams do to the image or the output must be
 * waited for first. */
UF_API uf_status uf_segment(uf_engine *engine, const uf_image *image, const uf_run_options *options, uf_output *output);

/* A context owns all memory of one pass over `count` images of height x width (a legal size; 0: 1 image of the trained
 * size), so that uf_enqueue allocates nothing.  One per thread or stream. */
UF_API uf_status uf_context_create(uf_engine *engine, int32_t count, int32_t height, int32_t width,
                                   uf_context **context);
UF_API void uf_context_destroy(uf_context *context);

/* Runs one pass over at most `count` images of exactly the context's size.  A `threshold` of 0 is the file's.
 * On a GPU it is put on `cuda_stream` (a CUstream of the GPU's primary context; NULL: the context's own, then the call
 * waits).  Image and output must stay until the stream has passed; an output in host memory is waited for.
 * On a CPU it is done on return and `cuda_stream` must be NULL. */
UF_API uf_status uf_enqueue(uf_context *context, const uf_image *image, float threshold, uf_output *output,
                            void *cuda_stream);

#ifdef __cplusplus
}
#endif
#endif /* UNET_FAST_H */
