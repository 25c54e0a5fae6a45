/**
 * @file
 * unet_fast: run a frozen U-Net (.unet file) from C.
 *
 * @code
 *     uf_engine *engine = NULL;
 *     uf_image image = {.struct_size = sizeof image, .data = pixels, .dtype = UF_UINT8, .height = 480, .width = 640};
 *     uf_output mask = {.struct_size = sizeof mask, .data = result, .dtype = UF_UINT8};
 *     if (uf_engine_open("cells.unet", NULL, &engine) != UF_OK || uf_segment(engine, &image, NULL, &mask) != UF_OK)
 *         fprintf(stderr, "%s\n", uf_last_error());
 *     uf_engine_close(engine);
 * @endcode
 *
 * Conventions, once for all functions:
 *
 * Status    Every function that can fail returns a uf_status; UF_OK is 0.  After a failure uf_last_error() of the same
 *           thread says what was wrong, what is accepted and how to fix it; outputs named `uf_... **` are set to NULL,
 *           image buffers hold unspecified values, anything else is as before.  Nothing prints, aborts or throws, and
 *           an engine stays usable unless the status is UF_ERR_DEVICE_LOST.
 * Handles   uf_engine and uf_context are opaque.  The caller closes what he opened; closing NULL does nothing.
 *           An engine may be closed before its contexts: it lives until the last of them is destroyed.  A call with a
 *           handle that is already closed is refused, and closing it again does nothing, for as long as the library
 *           remembers it: until 16 more of its kind have been closed.  No call may run while its own handle is closed.
 * Structs   begin with `struct_size`, which the caller sets to sizeof; every other field may be zero, which means the
 *           default.  Fields are only ever appended: a program built with an older header runs with a newer library,
 *           and one built with a newer header runs with an older library as long as it leaves at zero what that one
 *           does not know (else UF_ERR_UNSUPPORTED).  Initialise them by name, so that new fields are zero.
 * Memory    The library keeps no pointer to a caller's image or output after the call (uf_enqueue: after the work).
 *           Pixels need no alignment beyond that of their type.  Image and output must not overlap.
 * Threads   Any thread may call any function at any time.  Many may use one engine at once; a context serves one call
 *           at a time, a second one gets UF_ERR_BUSY.  A process may fork; a child goes on with engines on the CPU.
 *           No function is for signal handlers.
 * Sizes     are in pixels, strides in bytes.  height x width is rows x columns.
 */
#ifndef UNET_FAST_H
#define UNET_FAST_H

#include <stddef.h>
#include <stdint.h>

/** @name Version of this header; uf_version() is that of the library.
 * @{ */
/** Changes when a program has to be built anew. */
#define UF_VERSION_MAJOR 0
/** Changes with every addition. */
#define UF_VERSION_MINOR 1
/** Changes with corrections only. */
#define UF_VERSION_PATCH 0
/** @} */

/** What the shared library exports. */
#if defined(__GNUC__)
#define UF_API __attribute__((visibility("default")))
#else
#define UF_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/** How a call ended. */
typedef enum uf_status {
    UF_OK = 0,                   /**< done */
    UF_ERR_INVALID_ARGUMENT = 1, /**< a NULL, a size, a stride, a dtype or a pixel that is not accepted */
    UF_ERR_IO = 2,               /**< the file cannot be opened or read */
    UF_ERR_BAD_FILE = 3,         /**< not an engine file, or a damaged one */
    UF_ERR_VERSION = 4,          /**< written by a newer unet_fast than this library reads */
    UF_ERR_UNSUPPORTED = 5,      /**< this machine, file or library lacks what was asked for */
    UF_ERR_OUT_OF_MEMORY = 6,    /**< host or device memory */
    UF_ERR_BUSY = 7,             /**< the context is in use by another thread */
    UF_ERR_DEVICE = 8,           /**< a call to the GPU driver failed; the engine is still usable */
    UF_ERR_DEVICE_LOST = 9,      /**< the GPU is gone; the engine can only be closed */
    UF_ERR_INTERNAL = 10         /**< a defect of this library */
} uf_status;

/** Type of a pixel or result value. */
typedef enum uf_dtype {
    UF_UINT8 = 1,  /**< one byte */
    UF_UINT16 = 2, /**< two bytes, in the machine's order */
    UF_FLOAT32 = 3 /**< four bytes */
} uf_dtype;

/** Where pixels or results are. */
typedef enum uf_memory {
    UF_MEMORY_HOST = 0, /**< addressable by the CPU */
    UF_MEMORY_CUDA = 1  /**< memory of the GPU that the engine runs on */
} uf_memory;

/** How an image that is not of the network's own size is treated. */
typedef enum uf_tiling {
    UF_TILING_FAST = 0,   /**< tiles of the trained size, overlapping, probabilities blended linearly */
    UF_TILING_EXACT = 1,  /**< tiles with a halo of context: the same result as the whole image in one pass, but for
                               roundings */
    UF_TILING_RESIZE = 2, /**< the image is resized to the trained size, the probability back (bilinear) */
    UF_TILING_NONE = 3    /**< one pass over the whole image, whose size must be legal for the network; a network with
                               valid padding returns its own, smaller size */
} uf_tiling;

/** A network that is ready to run.  Opaque. */
typedef struct uf_engine uf_engine;

/** Memory for one pass, for callers that must not wait for any.  Opaque. */
typedef struct uf_context uf_context;

/** How an engine is opened. */
typedef struct uf_options {
    size_t struct_size;    /**< sizeof(uf_options) */
    const char *device;    /**< "auto" (default), "cpu", "cpu-reference" (slow, obvious loops), "cuda", "cuda:1" */
    const char *precision; /**< "auto" (default): the fastest that the file allows here; "float32", "bf16" (a GPU, or
                                a CPU with AVX-512 BF16 or Arm's BF16), "fp16" (a GPU, or a CPU with Arm's FP16,
                                which keeps tensors in float32), "int8" (the CPU, for files frozen so) */
    const char *cpu_isa;   /**< "auto" (default): the best of this CPU; "portable", "avx2", "avx512",
                                "avx512_bf16", "neon", "neon_fp16", "neon_bf16": at most that, for tests and
                                comparisons */
    int32_t threads;       /**< CPU threads, the caller's included, up to 1024; 0: one per physical core that this
                                process may use.  With 1 the library starts no threads */
    int32_t refuse_embedded_code; /**< non-zero: ignore GPU code in the file, run on the CPU */
    const char *thread_affinity;  /**< processors that the library's own threads are bound to, one each in turn, as
                                       "2,4-7", that of `keep_warm_ms` last; NULL: those of the opening thread (in a
                                       child made by fork(), of the first that calls).  The caller's thread is his own */
    int64_t thread_priority;      /**< 1..99: the library's own threads are real-time threads (SCHED_FIFO) of that
                                       priority, UF_ERR_UNSUPPORTED without the right to it; 0: as the opening thread */
    int64_t keep_warm_ms;         /**< 1..60000: after each pause of so many milliseconds a thread of the library runs a
                                       pass over a black image on the CPU, in the memory of the latest uf_segment(), so
                                       that a call after the pause finds caches and processors as if there had been
                                       none.  Costs the time of a pass per pause; a call waits for one op of it at most.
                                       Not for uf_enqueue(), nor in a child made by fork().  0: nothing in pauses */
} uf_options;

/** A stride of no bytes, where 0 would mean the default: the same grey pixels for each channel of a colour network, as
 * `channel_stride_bytes`, or the same image for each of a batch. */
#define UF_STRIDE_ZERO INT64_MIN

/** An image, or a batch of them, in host memory or that of the GPU the engine runs on.  Channels are interleaved (HWC)
 * by default.  Strides express the rest: rows of a larger image, planar channels, reversed or left-out channels;
 * uf_image_describe() sets them for the usual encodings.  They may be negative.  Float pixels must be finite, and may
 * be darker than 0 and brighter than `max_value`; those in GPU memory are not checked. */
typedef struct uf_image {
    size_t struct_size;           /**< sizeof(uf_image) */
    const void *data;             /**< first channel of the first pixel of the first image, aligned to its dtype */
    int32_t dtype;                /**< uf_dtype */
    int32_t memory;               /**< uf_memory */
    int32_t count;                /**< images in the batch; 0 means 1 */
    int32_t height;               /**< 1..1048576 */
    int32_t width;                /**< 1..1048576 */
    int32_t channels;             /**< must equal the network's; 0 means just that */
    int64_t image_stride_bytes;   /**< 0: one image after the other */
    int64_t row_stride_bytes;     /**< 0: width * pixel stride */
    int64_t pixel_stride_bytes;   /**< 0: channels * size of dtype */
    int64_t channel_stride_bytes; /**< 0: size of dtype */
    float max_value;   /**< what counts as white, 1e-6..1e30; 0: 255, 65535 or 1.0 by dtype.  4095 for a 12-bit
                            camera */
    size_t size_bytes; /**< memory behind `data`; an image that reaches further is refused.  0: not checked.
                            What negative strides reach before `data` is never checked */
} uf_image;

/** Where a result goes: mask (UF_UINT8; count x height x width) or probability (UF_FLOAT32; count x height x width x
 * output channels, channels innermost).  Height and width are those of uf_output_size(): the image's own, except for
 * UF_TILING_NONE with valid padding.  Bytes between rows are left alone. */
typedef struct uf_output {
    size_t struct_size; /**< sizeof(uf_output) */
    void *data;         /**< first value of the first row of the first result, aligned to its dtype */
    int32_t dtype;      /**< UF_UINT8: mask, 0 or 255 for one class, else class indices; UF_FLOAT32: probability */
    int32_t memory;     /**< uf_memory */
    int64_t image_stride_bytes; /**< 0: one after the other.  Results may not overlap */
    int64_t row_stride_bytes;   /**< 0: tight.  May be negative; rows may not overlap */
    size_t size_bytes;          /**< memory behind `data`, as in uf_image */
} uf_output;

/** How one call treats its image. */
typedef struct uf_run_options {
    size_t struct_size; /**< sizeof(uf_run_options) */
    int32_t tiling;     /**< uf_tiling */
    int32_t tile;       /**< side of a tile, a legal size; 0: the trained size (fast), up to 1024 (exact) */
    int32_t overlap;    /**< UF_TILING_FAST: pixels that neighbouring tiles share, up to half of what a tile gives;
                             0: an eighth of it */
    float threshold;    /**< probability above which a pixel of a mask of one class is foreground, in (0, 1); 0: the
                             file's, usually 0.5.  Several classes: not used, the most probable one wins */
} uf_run_options;

/** What an engine is now: device, precision and tuning change where a GPU is lost on device "auto", and where the
 * engine is tuned.  Strings live as long as the engine. */
typedef struct uf_info {
    size_t struct_size;        /**< sizeof(uf_info) */
    int32_t channels;          /**< of the image, 1..4 */
    int32_t output_channels;   /**< of the probability */
    int32_t output_kind;       /**< 0 sigmoid, 1 softmax, 2 identity (regression: no mask) */
    int32_t tile;              /**< side of the images that the network was trained on */
    int32_t multiple;          /**< legal sides for one pass: n >= minimum and n % multiple == remainder */
    int32_t remainder;         /**< see `multiple` */
    int32_t minimum;           /**< see `multiple` */
    int32_t margin;            /**< pixels that valid padding takes off each side */
    int32_t halo;              /**< pixels of context for exact tiles; -1: this network cannot be tiled exactly */
    int32_t threads;           /**< CPU threads, the caller's included */
    int32_t op_count;          /**< operations of one pass */
    float threshold;           /**< the file's, in (0, 1) */
    const char *name;          /**< of the network */
    const char *device;        /**< "cpu", "cpu-reference" or "cuda:N" */
    const char *device_reason; /**< why this device was chosen, one sentence */
    const char *precision;     /**< "float32", "bf16", "fp16" or "int8"; what is not exact enough or not faster in it
                                    is computed in float32 */
    const char *cpu_isa;       /**< "portable", "avx2", "avx512", "avx512_bf16", "neon", "neon_fp16", "neon_bf16"; with
                                    precision "int8" also "avx2_vnni", "avx512_vnni", "neon_dotprod" and "neon_i8mm",
                                    which uf_options.cpu_isa allows as "avx512", "avx512_bf16", "neon_fp16" and
                                    "neon_bf16"; "" on a GPU */
    const char *tuning;        /**< which kernels a GPU runs and where that was measured, one sentence, which also names
                                    tuning files that could not be used and why; "" on a CPU */
    const char *tuning_file;   /**< the file with these measurements; "": the engine file's own order of kernels */
} uf_info;

/** One op of a profile. */
typedef struct uf_op_time {
    size_t struct_size; /**< sizeof(uf_op_time) */
    const char *name;   /**< of the op; lives as long as the engine */
    const char
        *kernel;    /**< on a GPU the candidate that runs, see uf_engine_tune(), else ""; lives as long as the engine */
    double seconds; /**< median */
} uf_op_time;

/** A profile as a whole.  Rates are 0 where they are not known. */
typedef struct uf_profile {
    size_t struct_size;           /**< sizeof(uf_profile) */
    double pass_seconds;          /**< of one pass, median; on a GPU without copies from and to the host */
    double bytes_per_second;      /**< the most that copies in memory read and wrote on this device, measured now */
    double operations_per_second; /**< the most that this device can do in the engine's precision, 2 per multiply-add */
    int32_t operations_measured;  /**< 1: measured now; 0: from the data sheet, at the highest clock */
} uf_profile;

/** Version of the library as "0.1.0".
 * @return a string that lives as long as the library */
UF_API const char *uf_version(void);

/** Message of the last failure on this thread.
 * @return one line without a newline, "" if nothing has failed; valid until the next failing call of this thread */
UF_API const char *uf_last_error(void);

/** Name of a status.
 * @param status any number
 * @return as "UF_ERR_BAD_FILE", or "unknown status"; lives as long as the library */
UF_API const char *uf_status_name(uf_status status);

/** Opens an engine file: reads and checks it, picks the device, packs the weights.  Takes milliseconds for a small
 * network; allocates.  Nothing in the file can harm the process unless GPU code in it runs (`refuse_embedded_code`).
 * @param path of the file, as the system's open() takes it; not read again after the call
 * @param options NULL: the defaults.  Its strings need to live for the call only
 * @param engine set to the new engine, which the caller closes with uf_engine_close(); NULL after a failure
 * @return UF_ERR_IO, UF_ERR_BAD_FILE, UF_ERR_VERSION for the file; UF_ERR_INVALID_ARGUMENT, UF_ERR_UNSUPPORTED for the
 *   options; UF_ERR_OUT_OF_MEMORY; UF_ERR_DEVICE, UF_ERR_DEVICE_LOST for a GPU that was asked for by name */
UF_API uf_status uf_engine_open(const char *path, const uf_options *options, uf_engine **engine);

/** Like uf_engine_open, but from memory.
 * @param data the bytes of an engine file, at any address; may be freed after the call
 * @param size_bytes of all of it
 * @param options see uf_engine_open()
 * @param engine see uf_engine_open()
 * @return see uf_engine_open() */
UF_API uf_status uf_engine_open_memory(const void *data, size_t size_bytes, const uf_options *options,
                                       uf_engine **engine);

/** Closes an engine, and with the last of its contexts frees it.  No call on the engine may be running.
 * @param engine NULL or an engine */
UF_API void uf_engine_close(uf_engine *engine);

/** What an engine is.  Allocates nothing.
 * @param engine an engine
 * @param info filled up to its struct_size, which the caller has set; unchanged after a failure
 * @return UF_ERR_INVALID_ARGUMENT */
UF_API uf_status uf_engine_info(const uf_engine *engine, uf_info *info);

/** Whether the engine can still work.  Asks nothing of the device, allocates nothing.
 * @param engine an engine
 * @return 1; 0 once its GPU was lost, which an engine on device "auto" survives on the CPU, and for NULL or a closed
 *   engine */
UF_API int32_t uf_engine_healthy(const uf_engine *engine);

/** Size of the result for an image of height x width.
 * @param engine an engine
 * @param height of the image, 1..1048576
 * @param width of the image, 1..1048576
 * @param options those that the image will be segmented with; NULL: the defaults
 * @param output_height set to the rows of the result; unchanged after a failure
 * @param output_width set to its columns; unchanged after a failure
 * @return UF_ERR_INVALID_ARGUMENT, also for a size that UF_TILING_NONE cannot take; UF_ERR_UNSUPPORTED */
UF_API uf_status uf_output_size(const uf_engine *engine, int32_t height, int32_t width, const uf_run_options *options,
                                int32_t *output_height, int32_t *output_width);

/** Describes pixels of a usual encoding, by strides alone: nothing is copied or converted.  A network of N channels
 * takes an encoding of N channels; alpha is left out.  Allocates nothing.
 * @param image its struct_size must be set; every other field is overwritten, `size_bytes` with 0.  Unchanged after a
 *   failure
 * @param data the first byte of the first row, as the camera, ROS or OpenCV gives it
 * @param encoding "mono8", "mono16", "rgb8", "bgr8", "rgba8", "bgra8", "rgb16", "bgr16", "rgba16", "bgra16", or
 *   "8UC1", "8UC3", "16UC1", "16UC3", "32FC1", "32FC3" (channels in the network's order): the names of ROS
 * @param height rows, 1..1048576
 * @param width columns, 1..1048576
 * @param row_stride_bytes from one row to the next; 0: tight
 * @return UF_ERR_INVALID_ARGUMENT */
UF_API uf_status uf_image_describe(uf_image *image, const void *data, const char *encoding, int32_t height,
                                   int32_t width, int64_t row_stride_bytes);

/** Segments an image or batch into a mask or, for a UF_FLOAT32 output, into probabilities.
 * Images and results in batch positions are independent: each equals what it would be alone, bit for bit.
 * On a CPU, a successful call allocates nothing if a call for the same sizes came before it, as many of them at once
 * as now, and what they took could be kept, which is up to 512 MB; it opens no file and looks at no locale.  It takes
 * a mutex three times, briefly, that all engines of the process share, and with `keep_warm_ms` one of its own;
 * uf_enqueue(), which takes none with `threads` 1, is the call for a control loop.
 * On a GPU this comes after work on the legacy default stream; what other streams do to the image or the output must
 * be waited for first.
 * @param engine any thread's; many calls may run at once
 * @param image read during the call only
 * @param options NULL: the defaults
 * @param output complete on return
 * @return UF_ERR_INVALID_ARGUMENT, UF_ERR_UNSUPPORTED before anything is written; UF_ERR_OUT_OF_MEMORY, UF_ERR_DEVICE,
 *   UF_ERR_DEVICE_LOST */
UF_API uf_status uf_segment(uf_engine *engine, const uf_image *image, const uf_run_options *options, uf_output *output);

/** A context owns all memory of one pass, so that uf_enqueue() allocates nothing, but for pinned memory on a GPU that
 * the first image and the first result in host memory need.  One per thread or stream.
 * @param engine which the context keeps alive
 * @param count images in a pass at most, 1..65536; 0: 1
 * @param height of the image, a legal size; 0: the trained size
 * @param width likewise
 * @param context set to the new context, which the caller destroys with uf_context_destroy(); NULL after a failure
 * @return UF_ERR_INVALID_ARGUMENT, UF_ERR_OUT_OF_MEMORY, UF_ERR_DEVICE, UF_ERR_DEVICE_LOST */
UF_API uf_status uf_context_create(uf_engine *engine, int32_t count, int32_t height, int32_t width,
                                   uf_context **context);

/** Destroys a context.  No uf_enqueue() on it may be running, nor its work on a stream.
 * @param context NULL or a context */
UF_API void uf_context_destroy(uf_context *context);

/** Runs one pass over at most `count` images of exactly the context's size.
 * On a CPU, after one call to warm up, a successful call allocates nothing, opens no file, looks at no locale and,
 * with `threads` 1, makes no system call at all; with more threads it wakes them and waits for them by futex, nothing
 * else.
 * On a GPU it is put on `cuda_stream`, after the pass before it; a result in host memory is waited for.
 * @param context one call at a time, from any thread
 * @param image must stay until the pass is done
 * @param threshold in (0, 1), as in uf_run_options; 0: the file's
 * @param output must stay until the pass is done
 * @param cuda_stream a CUstream of the GPU's primary context; NULL: the context's own, then the call waits.  On a CPU
 *   it must be NULL, and the result is complete on return
 * @return UF_ERR_BUSY while another thread is inside; UF_ERR_INVALID_ARGUMENT, UF_ERR_UNSUPPORTED before anything is
 *   written; UF_ERR_DEVICE, UF_ERR_DEVICE_LOST */
UF_API uf_status uf_enqueue(uf_context *context, const uf_image *image, float threshold, uf_output *output,
                            void *cuda_stream);

/** Measures which of the engine file's kernels are the fastest on this GPU, which takes seconds, and goes on with
 * those. The choice is one for all batches, so that results do not depend on the batch; from those of an engine that is
 * not tuned they may differ by a few roundings.  Contexts that exist keep the kernels they have. The choice is kept in
 * the user's cache ($UNET_FAST_CACHE, else $XDG_CACHE_HOME/unet_fast, else ~/.cache/unet_fast), where every engine with
 * the same GPU code finds it that is opened on such a GPU with such a driver.  A table that is kept elsewhere serves
 * others: put into the folder $UNET_FAST_TUNINGS, or into unet_fast-tunings beside the library, it is used on such a
 * GPU by engines of this architecture, whatever their weights, where the cache has nothing.
 * @param engine other threads may use it meanwhile, which disturbs the measuring
 * @param count images in the passes to be fast in, 1..65536; 0: 1
 * @param height of the images, a legal size; 0: the trained size
 * @param width likewise
 * @param path of the file to keep the choice in, replaced where it exists; NULL: the user's cache
 * @return UF_ERR_IO where the choice cannot be kept, which the engine then has until it is closed; all others leave
 *   the engine as it was: UF_ERR_INVALID_ARGUMENT, UF_ERR_UNSUPPORTED on a CPU, UF_ERR_OUT_OF_MEMORY, UF_ERR_DEVICE,
 *   UF_ERR_DEVICE_LOST */
UF_API uf_status uf_engine_tune(uf_engine *engine, int32_t count, int32_t height, int32_t width, const char *path);

/** Times each op of a pass, for about a second: on a GPU each op repeated by itself, so that the times do not add up to
 * that of the pass; on a CPU within whole passes, of which there are at least four however long one takes.
 * @param engine other threads may use it meanwhile, which disturbs the measuring
 * @param count images in a pass, 1..65536; 0: 1
 * @param height of the images, a legal size; 0: the trained size
 * @param width likewise
 * @param ops room for `capacity` of them, the struct_size of the first set; NULL: not wanted.  Unchanged after a
 *   failure
 * @param capacity uf_info.op_count or more; 0 where `ops` is NULL
 * @param profile its struct_size must be set; NULL: not wanted.  Unchanged after a failure
 * @return UF_ERR_INVALID_ARGUMENT, UF_ERR_UNSUPPORTED on device cpu-reference, UF_ERR_OUT_OF_MEMORY, UF_ERR_DEVICE,
 *   UF_ERR_DEVICE_LOST */
UF_API uf_status uf_engine_profile(uf_engine *engine, int32_t count, int32_t height, int32_t width, uf_op_time *ops,
                                   int32_t capacity, uf_profile *profile);

#ifdef __cplusplus
}
#endif
#endif /* UNET_FAST_H */
