#include "simulated_camera.hpp"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <random>
#include <stdexcept>

namespace example {

namespace {

// A number of a PGM header, past blanks and comments.
int header_number(std::istream &file) {
    while ((file >> std::ws).peek() == '#')
        file.ignore(1 << 16, '\n');
    int number = 0;
    return file >> number && number <= 1 << 15 ? number : 0;
}

std::vector<uint8_t> read_pgm(const std::filesystem::path &path, int &height, int &width) {
    std::ifstream file(path, std::ios::binary);
    char kind[2] = {};
    file.read(kind, 2);
    width = header_number(file);
    height = header_number(file);
    const int white = header_number(file);
    file.get(); // one blank
    if (!file || kind[0] != 'P' || kind[1] != '5' || width < 1 || height < 1 || white < 1 || white > 255)
        throw std::runtime_error(path.string() + " is not an 8-bit binary PGM");
    std::vector<uint8_t> pixels(static_cast<size_t>(height) * static_cast<size_t>(width));
    if (!file.read(reinterpret_cast<char *>(pixels.data()), static_cast<std::streamsize>(pixels.size())))
        throw std::runtime_error(path.string() + " is cut short");
    return pixels;
}

} // namespace

Scene scene_from_folder(const std::filesystem::path &folder) {
    std::vector<std::filesystem::path> paths;
    for (const auto &entry : std::filesystem::directory_iterator(folder))
        if (entry.path().extension() == ".pgm")
            paths.push_back(entry.path());
    if (paths.empty())
        throw std::runtime_error("no .pgm file in " + folder.string());
    std::sort(paths.begin(), paths.end());
    Scene scene;
    for (const auto &path : paths) {
        int height = 0, width = 0;
        scene.pictures.push_back({path.stem().string(), read_pgm(path, height, width)});
        if (scene.pictures.size() > 1 && (height != scene.height || width != scene.width))
            throw std::runtime_error(path.string() + " is " + std::to_string(height) + " x " + std::to_string(width) +
                                     ", the pictures before it " + std::to_string(scene.height) + " x " +
                                     std::to_string(scene.width));
        scene.height = height;
        scene.width = width;
    }
    return scene;
}

Scene drawn_scene(int height, int width, int pictures) {
    struct Body {
        float y, x, speed_y, speed_x, radius;
    };
    std::mt19937 random(1);
    const auto uniform = [&random](float low, float high) {
        return std::uniform_real_distribution<float>(low, high)(random);
    };
    std::vector<Body> bodies(12);
    for (Body &body : bodies)
        body = {uniform(0, static_cast<float>(height)), uniform(0, static_cast<float>(width)), uniform(-3, 3),
                uniform(-3, 3), uniform(4, 14)};
    Scene scene;
    scene.height = height;
    scene.width = width;
    for (int index = 0; index < pictures; ++index) {
        Picture picture{"drawn_" + std::to_string(index), {}};
        picture.pixels.reserve(static_cast<size_t>(height) * static_cast<size_t>(width));
        for (int y = 0; y < height; ++y)
            for (int x = 0; x < width; ++x) {
                float light = 30.0F + uniform(-8, 8);
                for (const Body &body : bodies) {
                    const float time = static_cast<float>(index);
                    const float dy = static_cast<float>(y) - body.y - time * body.speed_y;
                    const float dx = static_cast<float>(x) - body.x - time * body.speed_x;
                    light += 150.0F * std::exp(-(dy * dy + dx * dx) / (body.radius * body.radius));
                }
                picture.pixels.push_back(static_cast<uint8_t>(std::clamp(light, 0.0F, 255.0F)));
            }
        scene.pictures.push_back(std::move(picture));
    }
    return scene;
}

void write_pgm(const std::filesystem::path &path, const uint8_t *pixels, int height, int width) {
    std::ofstream file(path, std::ios::binary);
    file << "P5\n" << width << ' ' << height << "\n255\n";
    file.write(reinterpret_cast<const char *>(pixels),
               static_cast<std::streamsize>(height) * static_cast<std::streamsize>(width));
    file.close();
    if (!file)
        throw std::runtime_error("cannot write " + path.string());
}

} // namespace example
