// One engine under many threads, images of mixed sizes, engines opened and closed meanwhile, forks: always the same
// bits. Through unet_fast.hpp, which is checked along the way.
//
//     test_threads ENGINE.unet [--no-fork] [--threads N] [--rounds N]     a network of one channel and one class
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"
#include "unet_fast.hpp"

namespace {

struct Case {
    int height, width;
    unet_fast::RunOptions options;
    std::vector<uint8_t> pixels;
    std::vector<float> expected;
};

unet_fast::Options on_threads(int threads) {
    unet_fast::Options options;
    options.precision = "float32";
    options.threads = threads;
    return options;
}

std::vector<Case> make_cases(const unet_fast::Engine &engine) {
    std::vector<Case> cases;
    const struct {
        int height, width;
        uf_tiling tiling;
    } kinds[] = {{32, 32, UF_TILING_NONE},   {1, 1, UF_TILING_FAST},    {75, 50, UF_TILING_FAST},
                 {64, 100, UF_TILING_EXACT}, {7, 90, UF_TILING_RESIZE}, {31, 33, UF_TILING_EXACT}};
    for (const auto &kind : kinds) {
        Case made{kind.height, kind.width, {}, {}, {}};
        made.options.tiling = kind.tiling;
        made.pixels.resize(static_cast<size_t>(kind.height) * static_cast<size_t>(kind.width));
        fill_with_noise(made.pixels.data(), made.pixels.size(), static_cast<uint32_t>(cases.size()));
        made.expected = engine.probability(unet_fast::view(made.pixels, kind.height, kind.width), made.options);
        cases.push_back(std::move(made));
    }
    return cases;
}

bool gives_the_same(const unet_fast::Engine &engine, const Case &one) {
    return engine.probability(unet_fast::view(one.pixels, one.height, one.width), one.options) == one.expected;
}

void test_face(const std::string &path) {
    unet_fast::Engine engine(path, on_threads(2));
    CHECK(engine.info().channels == 1 && engine.info().threads == 2);
    const auto status_of = [](const auto &call) {
        try {
            call();
        } catch (const unet_fast::Error &error) {
            CHECK(std::string(error.what()).size() > 10);
            return error.status();
        }
        return UF_OK;
    };
    CHECK(status_of([] { unet_fast::Engine nothing("no/such/file.unet"); }) == UF_ERR_IO);
    CHECK(status_of([] { unet_fast::Engine nothing("abc", 3); }) == UF_ERR_BAD_FILE);
    CHECK(status_of([&] { (void)engine.context(1, 31, 32); }) == UF_ERR_INVALID_ARGUMENT);

    std::ifstream file(path, std::ios::binary);
    const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    unet_fast::Engine copy(bytes.data(), bytes.size(), on_threads(1));
    engine = std::move(copy); // the first one is closed

    std::vector<uint8_t> pixels(2 * 32 * 32);
    fill_with_noise(pixels.data(), pixels.size(), 7);
    const uf_image image = unet_fast::view(pixels, 32, 32, 1, 2);
    const std::vector<uint8_t> mask = engine.segment(image);
    CHECK(mask.size() == pixels.size());
    bool too_few = false;
    try {
        (void)unet_fast::view(pixels, 64, 33);
    } catch (const std::invalid_argument &) {
        too_few = true;
    }
    CHECK(too_few);

    unet_fast::Context context = engine.context(2);
    {
        const unet_fast::Engine closed = std::move(engine);
    }
    std::vector<uint8_t> again(mask.size());
    uf_output output = unet_fast::output(again.data());
    context.enqueue(image, output);
    CHECK(again == mask);
}

void test_threads(const std::string &path, int thread_count, int rounds) {
    const unet_fast::Engine engine(path, on_threads(2));
    const std::vector<Case> cases = make_cases(engine);
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (int thread = 0; thread < thread_count; ++thread)
        threads.emplace_back([&, thread] {
            for (int round = 0; round < rounds; ++round) {
                const Case &one = cases[static_cast<size_t>(thread + round) % cases.size()];
                wrong += !gives_the_same(engine, one);
                if (round % 4 == thread % 4)
                    wrong += !gives_the_same(unet_fast::Engine(path, on_threads(1 + round % 3)), one);
            }
        });
    for (std::thread &thread : threads)
        thread.join();
    CHECK(wrong == 0);
}

// Children are forked from an engine that has not run, that has run, and that other threads are using.
void test_forks(const std::string &path) {
    const unet_fast::Engine engine(path, on_threads(2)), unused(path, on_threads(2));
    const std::vector<Case> cases = make_cases(engine);
    std::atomic<bool> stop{false};
    std::vector<std::thread> busy;
    for (int thread = 0; thread < 2; ++thread)
        busy.emplace_back([&] {
            while (!stop)
                (void)gives_the_same(engine, cases[2]);
        });
    for (int i = 0; i < 20; ++i) {
        const pid_t child = fork();
        if (child == 0) {
            alarm(20);
            bool right = true;
            for (const Case &one : cases)
                right = right && gives_the_same(i % 2 == 0 ? engine : unused, one);
            _exit(right ? 0 : 1);
        }
        int status = 0;
        waitpid(child, &status, 0);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    stop = true;
    for (std::thread &thread : busy)
        thread.join();
}

} // namespace

int main(int count, char **arguments) {
    bool forks = true;
    int threads = 8, rounds = 24;
    for (int i = 2; i < count; ++i) {
        const std::string option = arguments[i];
        if (option == "--no-fork")
            forks = false;
        else if (option == "--threads" && i + 1 < count)
            threads = std::atoi(arguments[++i]);
        else if (option == "--rounds" && i + 1 < count)
            rounds = std::atoi(arguments[++i]);
        else
            count = 0;
    }
    if (count < 2) {
        std::fprintf(stderr, "usage: test_threads ENGINE.unet [--no-fork] [--threads N] [--rounds N]\n");
        return 2;
    }
    test_face(arguments[1]);
    test_threads(arguments[1], threads, rounds);
    if (forks)
        test_forks(arguments[1]);
    std::printf("%d failures\n", failures);
    return failures != 0;
}
