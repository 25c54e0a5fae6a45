// unet_fast_opencv.hpp: test_opencv_header FOLDER, which holds engines of tests/networks.py.  Each matrix must give
// what the same pixels give as a tight array.
#include <string>

#include <unet_fast_opencv.hpp>

#include "../c/check.h"
#include "refused.h"

using unet_fast::ColourOrder;
using unet_fast::Engine;

constexpr int height = 40, width = 52;

// Noise; of CV_32F in [0, 1].
static cv::Mat noise(int type, int rows = height, int columns = width) {
    cv::Mat image(rows, columns, type);
    static cv::RNG random(11);
    const double white = image.depth() == CV_8U ? 256 : image.depth() == CV_16U ? 65536 : 1;
    random.fill(image, cv::RNG::UNIFORM, 0, white);
    return image;
}

// The mask of a matrix whose channels are in the network's order, copied to a tight array first.
template <class Pixel> static cv::Mat tight_mask(const Engine &engine, const cv::Mat &image) {
    const cv::Mat copy = image.clone();
    const std::vector<uint8_t> mask =
        engine.segment(unet_fast::view(copy.ptr<Pixel>(), copy.rows, copy.cols, copy.channels()));
    return cv::Mat(mask, true).reshape(1, copy.rows);
}

static bool equal(const cv::Mat &a, const cv::Mat &b) {
    return a.type() == b.type() && a.size() == b.size() && cv::norm(a, b, cv::NORM_INF) == 0;
}

static cv::Mat converted(const cv::Mat &image, int code) {
    cv::Mat result;
    cv::cvtColor(image, result, code);
    return result;
}

static cv::Mat mask_of(const Engine &engine, const cv::Mat &image, ColourOrder order = ColourOrder::bgr) {
    cv::Mat mask;
    unet_fast::segment(engine, image, mask, {}, order);
    return mask;
}

template <class Pixel> static void test_orders(const Engine &grey, const Engine &colour, int depth) {
    const cv::Mat one = noise(CV_MAKETYPE(depth, 1)), three = noise(CV_MAKETYPE(depth, 3)),
                  four = noise(CV_MAKETYPE(depth, 4));
    CHECK(equal(mask_of(grey, one), tight_mask<Pixel>(grey, one)));
    CHECK(equal(mask_of(grey, three), tight_mask<Pixel>(grey, converted(three, cv::COLOR_BGR2GRAY))));
    CHECK(equal(mask_of(grey, three, ColourOrder::rgb), tight_mask<Pixel>(grey, converted(three, cv::COLOR_RGB2GRAY))));
    CHECK(equal(mask_of(grey, four), tight_mask<Pixel>(grey, converted(four, cv::COLOR_BGRA2GRAY))));
    CHECK(equal(mask_of(grey, four, ColourOrder::rgb), tight_mask<Pixel>(grey, converted(four, cv::COLOR_RGBA2GRAY))));
    CHECK(equal(mask_of(colour, one), tight_mask<Pixel>(colour, converted(one, cv::COLOR_GRAY2RGB))));
    CHECK(equal(mask_of(colour, three), tight_mask<Pixel>(colour, converted(three, cv::COLOR_BGR2RGB))));
    CHECK(equal(mask_of(colour, three, ColourOrder::rgb), tight_mask<Pixel>(colour, three)));
    CHECK(equal(mask_of(colour, four), tight_mask<Pixel>(colour, converted(four, cv::COLOR_BGRA2RGB))));
    CHECK(
        equal(mask_of(colour, four, ColourOrder::rgb), tight_mask<Pixel>(colour, converted(four, cv::COLOR_RGBA2RGB))));

    const cv::Rect inner(3, 5, 33, 29);
    CHECK(equal(mask_of(grey, one(inner)), tight_mask<Pixel>(grey, one(inner))));
    CHECK(equal(mask_of(colour, three(inner)), tight_mask<Pixel>(colour, converted(three(inner), cv::COLOR_BGR2RGB))));
}

// Pixels are read and results written where they are, and nowhere else.
static void test_no_copies(const Engine &colour) {
    const cv::Mat image = noise(CV_8UC3);
    const uf_image view = unet_fast::view(image, 3);
    CHECK(view.data == image.data + 2 && view.channel_stride_bytes == -1 && view.pixel_stride_bytes == 3);
    CHECK(view.row_stride_bytes == 3 * width);

    cv::Mat large(height + 8, width + 8, CV_8UC1, cv::Scalar(7));
    const cv::Rect middle(4, 4, width, height);
    unet_fast::segment(colour, image, large(middle));
    cv::Mat inner = large(middle);
    CHECK(equal(inner, mask_of(colour, image)));
    inner.setTo(7);
    CHECK(cv::countNonZero(large != 7) == 0);

    const uint8_t *const memory = inner.data;
    unet_fast::segment(colour, image, inner);
    CHECK(inner.data == memory);
    cv::Mat wrong(3, 4, CV_16UC1);
    unet_fast::segment(colour, image, wrong);
    CHECK(equal(wrong, inner));
}

static void test_in_place(const Engine &grey) {
    cv::Mat image = noise(CV_8UC1, 3 * height, 3 * width); // several tiles
    const cv::Mat expected = mask_of(grey, image.clone());
    unet_fast::segment(grey, image, image);
    CHECK(equal(image, expected));
}

static void test_probability(const Engine &grey, const Engine &classes) {
    const cv::Mat image = noise(CV_8UC1);
    cv::Mat one, five;
    unet_fast::probability(grey, image, one);
    CHECK(one.type() == CV_32FC1 && one.size() == image.size());
    CHECK(equal((one > 0.5), mask_of(grey, image)));
    unet_fast::probability(classes, image, five);
    CHECK(five.type() == CV_32FC(5) && five.size() == image.size());
    const std::vector<float> expected = classes.probability(unet_fast::view(image.ptr<uint8_t>(), height, width, 1));
    CHECK(std::equal(expected.begin(), expected.end(), five.ptr<float>()));

    unet_fast::Context context = grey.context(1, height, width);
    cv::Mat mask(height, width, CV_8UC1);
    uf_output to = unet_fast::output(mask);
    context.enqueue(unet_fast::view(image, 1), to);
    cv::Mat one_pass;
    unet_fast::segment(grey, image, one_pass, {UF_TILING_NONE});
    CHECK(equal(mask, one_pass));
}

// A network of two channels takes them as they are stored.
static void test_two_channels(const Engine &two) {
    const cv::Mat image = noise(CV_8UC2);
    CHECK(equal(mask_of(two, image), tight_mask<uint8_t>(two, image)));
}

static void test_refusals(const Engine &grey, const Engine &two) {
    cv::Mat mask;
    CHECK(refused("CV_64F", [&] { unet_fast::segment(grey, cv::Mat(8, 8, CV_64FC1), mask); }));
    CHECK(refused("empty", [&] { unet_fast::segment(grey, cv::Mat(), mask); }));
    CHECK(refused("2 channels", [&] { unet_fast::segment(grey, noise(CV_8UC2), mask); }));
    CHECK(refused("the network takes 2", [&] { unet_fast::segment(two, noise(CV_8UC3), mask); }));
    CHECK(refused("CV_8UC3", [&] { unet_fast::output(mask = cv::Mat(8, 8, CV_8UC3)); }));
    const auto run = [](const Engine &engine, const cv::Mat &image, cv::Mat result) {
        return [&engine, image, result]() mutable {
            uf_output to = unet_fast::output(result);
            engine.run(unet_fast::view(image, 1), to);
        };
    };
    CHECK(refused("size_bytes", run(grey, noise(CV_8UC1), cv::Mat(height - 1, width, CV_8UC1))));
    CHECK(refused("row", run(grey, noise(CV_8UC1), cv::Mat(height, width - 1, CV_8UC1))));
}

int main(int count, char **arguments) {
    if (count != 2)
        return 2;
    const auto engine = [&](const char *name) {
        return Engine(std::string(arguments[1]) + "/" + name + ".unet", {"cpu"});
    };
    const Engine grey = engine("plain"), colour = engine("rgb"), two = engine("two_channels"),
                 classes = engine("classes");
    test_orders<uint8_t>(grey, colour, CV_8U);
    test_orders<uint16_t>(grey, colour, CV_16U);
    test_orders<float>(grey, colour, CV_32F);
    test_no_copies(colour);
    test_in_place(grey);
    test_probability(grey, classes);
    test_two_channels(two);
    test_refusals(grey, two);
    return failures != 0;
}
