/* Writes the mask of a 40 x 50 gradient to standard output.
 *
 *     main ENGINE.unet     a network of one channel and one class
 */
#include <stdio.h>
#include <unet_fast.h>

enum { HEIGHT = 40, WIDTH = 50 };

static uint8_t pixels[HEIGHT][WIDTH], result[HEIGHT][WIDTH];

int main(int count, char **arguments) {
    if (count != 2)
        return 2;
    for (int y = 0; y < HEIGHT; ++y)
        for (int x = 0; x < WIDTH; ++x)
            pixels[y][x] = (uint8_t)(5 * y + 3 * x);
    uf_engine *engine = NULL;
    const uf_options options = {.struct_size = sizeof options, .device = "cpu", .threads = 1};
    const uf_image image = {
        .struct_size = sizeof image, .data = pixels, .dtype = UF_UINT8, .height = HEIGHT, .width = WIDTH};
    uf_output mask = {.struct_size = sizeof mask, .data = result, .dtype = UF_UINT8};
    if (uf_engine_open(arguments[1], &options, &engine) != UF_OK || uf_segment(engine, &image, NULL, &mask) != UF_OK) {
        fprintf(stderr, "%s\n", uf_last_error());
        return 1;
    }
    uf_engine_close(engine);
    return fwrite(result, 1, sizeof result, stdout) != sizeof result;
}
