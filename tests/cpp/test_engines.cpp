// Engine files that lie in the root folder, on every instruction set of this processor: results must be the bits of the
// plain loops.  tests/test_avx512.py runs it in an emulated PC.

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

#include "unet_fast.hpp"

namespace {

std::vector<char> contents(const std::filesystem::path &path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::vector<float> result(const std::vector<char> &file, const char *isa, int height, int width) {
    unet_fast::Options options;
    options.device = "cpu";
    options.cpu_isa = isa;
    options.threads = 1;
    const unet_fast::Engine engine(file.data(), file.size(), options);
    const int channels = engine.info().channels;
    std::vector<uint8_t> pixels(static_cast<size_t>(height) * static_cast<size_t>(width * channels));
    for (size_t i = 0; i < pixels.size(); ++i)
        pixels[i] = static_cast<uint8_t>((i * 2654435761U) >> 13);
    return engine.probability(unet_fast::view(pixels, height, width, channels));
}

} // namespace

int main() {
    int runs = 0;
    bool failed = false;
    for (const auto &entry : std::filesystem::directory_iterator("/")) {
        if (entry.path().extension() != ".unet")
            continue;
        const std::vector<char> file = contents(entry.path());
        for (const auto &[height, width] : {std::pair(24, 24), std::pair(48, 72)}) {
            const std::vector<float> expected = result(file, "portable", height, width);
            for (const char *isa : {"avx2", "avx512"}) {
                if (result(file, isa, height, width) != expected) {
                    std::printf("%s: other bits on %s than on portable\n", entry.path().c_str(), isa);
                    failed = true;
                }
                ++runs;
            }
        }
    }
    if (failed || runs == 0)
        return 1;
    std::printf("passed: %d runs on avx512 and avx2\n", runs);
    return 0;
}
