/* Writes the probability of an image of noise, float32, to a file, and says in what it was computed.
 *
 *     write_probability ENGINE.unet PRECISION HEIGHT WIDTH OUTPUT     a network of one channel
 */
#include <stdlib.h>

#include "check.h"

int main(int count, char **arguments) {
    if (count != 6)
        return 2;
    const int height = atoi(arguments[3]), width = atoi(arguments[4]);
    const uf_options options = {.struct_size = sizeof options, .device = "cpu", .precision = arguments[2]};
    uf_engine *engine = NULL;
    CHECK(uf_engine_open(arguments[1], &options, &engine) == UF_OK);
    uf_info info = {.struct_size = sizeof info};
    CHECK(uf_engine_info(engine, &info) == UF_OK);
    const size_t values = (size_t)height * (size_t)width;
    uint8_t *pixels = malloc(values);
    float *result = malloc(values * (size_t)info.output_channels * sizeof *result);
    fill_with_noise(pixels, values, 1);
    uf_image image = {.struct_size = sizeof image};
    CHECK(uf_image_describe(&image, pixels, "mono8", height, width, 0) == UF_OK);
    uf_output output = {.struct_size = sizeof output, .data = result, .dtype = UF_FLOAT32};
    CHECK(uf_segment(engine, &image, NULL, &output) == UF_OK);
    uf_engine_close(engine);
    FILE *file = fopen(arguments[5], "wb");
    CHECK(file != NULL);
    CHECK(fwrite(result, sizeof *result, values * (size_t)info.output_channels, file) ==
          values * (size_t)info.output_channels);
    CHECK(fclose(file) == 0);
    free(pixels);
    free(result);
    printf("%s in %s\n", info.precision, info.cpu_isa);
    return failures != 0;
}
