/* segment ENGINE.unet IMAGE.pgm MASK.pgm: segments an 8-bit grey picture (binary PGM, without comments in its header).
 *
 *     cc segment.c -lunet_fast -o segment
 */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <unet_fast.h>

static int fail(const char *what, const char *why) { return fprintf(stderr, "%s: %s\n", what, why), 1; }

int main(int count, char **arguments) {
    if (count != 4)
        return fail("usage", "segment ENGINE.unet IMAGE.pgm MASK.pgm");
    uf_engine *engine = NULL;
    if (uf_engine_open(arguments[1], NULL, &engine) != UF_OK)
        return fail("cannot open the engine", uf_last_error());

    int height = 0, width = 0, header = 0; /* characters of it, set behind the 255 */
    FILE *file = fopen(arguments[2], "rb");
    if (!file || fscanf(file, "P5 %d %d 255%n", &width, &height, &header) != 2 || header == 0 ||
        !isspace(fgetc(file)) || width < 1 || height < 1)
        return fail(arguments[2], "not an 8-bit binary PGM");
    const size_t size = (size_t)width * (size_t)height;
    unsigned char *pixels = malloc(size), *result = malloc(size);
    if (!pixels || !result || fread(pixels, 1, size, file) != size)
        return fail(arguments[2], "cut short");
    fclose(file);

    const uf_image image = {
        .struct_size = sizeof image, .data = pixels, .dtype = UF_UINT8, .height = height, .width = width};
    uf_output mask = {.struct_size = sizeof mask, .data = result, .dtype = UF_UINT8};
    if (uf_segment(engine, &image, NULL, &mask) != UF_OK)
        return fail("cannot segment", uf_last_error());

    file = fopen(arguments[3], "wb");
    if (!file || fprintf(file, "P5\n%d %d\n255\n", width, height) < 0 || fwrite(result, 1, size, file) != size ||
        fclose(file) != 0)
        return fail(arguments[3], "cannot write");
    free(pixels), free(result), uf_engine_close(engine);
    return 0;
}
