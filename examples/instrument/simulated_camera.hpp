// A camera that is not there: pictures from a folder, or drawn ones, at a fixed rate.
#ifndef SIMULATED_CAMERA_HPP
#define SIMULATED_CAMERA_HPP

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace example {

struct Picture {
    std::string name; // of its file, without folder and ending
    std::vector<uint8_t> pixels;
};

// Pictures of equal size that are shown in turn, 8-bit grey.
struct Scene {
    int height = 0, width = 0;
    std::vector<Picture> pictures;

    const Picture &shown(uint64_t exposure) const { return pictures[exposure % pictures.size()]; }
};

// The binary PGM files (P5, at most 255) of a folder, by name.  Throws std::runtime_error where there are none, one is
// broken, or their sizes differ.
Scene scene_from_folder(const std::filesystem::path &folder);

// Bright bodies that drift over a dark, noisy ground.
Scene drawn_scene(int height, int width, int pictures);

void write_pgm(const std::filesystem::path &path, const uint8_t *pixels, int height, int width);

} // namespace example

#endif // SIMULATED_CAMERA_HPP
