// What main.c does, by the C++ face.
#include <cstdio>
#include <unet_fast.hpp>

int main(int count, char **arguments) {
    if (count != 2)
        return 2;
    constexpr int height = 40, width = 50;
    std::vector<uint8_t> pixels;
    for (int y = 0; y < height; ++y)
        for (int x = 0; x < width; ++x)
            pixels.push_back(static_cast<uint8_t>(5 * y + 3 * x));
    try {
        unet_fast::Options options;
        options.device = "cpu";
        options.threads = 1;
        const unet_fast::Engine engine(arguments[1], options);
        const std::vector<uint8_t> mask = engine.segment(unet_fast::view(pixels, height, width));
        return std::fwrite(mask.data(), 1, mask.size(), stdout) != mask.size();
    } catch (const unet_fast::Error &error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
