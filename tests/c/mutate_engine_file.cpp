// The engine-file reader against damaged files, for a build with sanitizers:
//
//     mutate_engine_file ENGINE.unet COUNT     every length of the header's start, then COUNT random mutations
//
// Each must open or throw uf::Error; anything else ends the program.
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <random>
#include <vector>

#include "engine_file.h"
#include "error.h"

namespace {

using Bytes = std::vector<std::byte>;

long opened = 0, refused = 0;

void attempt(const Bytes &bytes, size_t size) {
    // A copy of just that size, so that a read behind its end is seen.
    const std::unique_ptr<std::byte[]> copy(new std::byte[size]);
    std::copy(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(size), copy.get());
    try {
        (void)uf::read_engine_file(copy.get(), size, true);
        ++opened;
    } catch (const uf::Error &error) {
        if (error.status() != UF_ERR_BAD_FILE && error.status() != UF_ERR_VERSION)
            throw;
        ++refused;
    }
}

void mutate(Bytes &bytes, size_t header_bytes, std::mt19937 &random) {
    const auto below = [&](size_t limit) { return static_cast<size_t>(random()) % limit; };
    // Mostly in the header, where structure is; digits and punctuation lead furthest into the reader.
    const char likely[] = "0123456789-.,:[]{}\"\\ enulx";
    for (size_t changes = 1 + below(3); changes > 0; --changes) {
        const size_t place = below(20) == 0 ? below(bytes.size()) : below(header_bytes);
        switch (below(4)) {
        case 0:
            bytes[place] ^= static_cast<std::byte>(1U << below(8));
            break;
        case 1:
            bytes[place] = static_cast<std::byte>(likely[below(sizeof likely - 1)]);
            break;
        case 2: // a digit where a digit stands
            for (size_t i = place; i < header_bytes; ++i)
                if (std::isdigit(std::to_integer<int>(bytes[i])) != 0) {
                    bytes[i] = static_cast<std::byte>('0' + below(10));
                    break;
                }
            break;
        default: { // a piece from elsewhere
            const size_t length = 1 + below(12);
            const size_t from = below(header_bytes);
            if (from + length <= bytes.size() && place + length <= bytes.size())
                std::memmove(&bytes[place], &bytes[from], length);
        }
        }
    }
}

} // namespace

int main(int count, char **arguments) {
    if (count != 3) {
        std::cerr << "usage: mutate_engine_file ENGINE.unet COUNT\n";
        return 2;
    }
    std::ifstream file(arguments[1], std::ios::binary);
    const std::vector<char> text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    Bytes good(text.size());
    if (good.size() < 64)
        return 2;
    std::memcpy(good.data(), text.data(), text.size());
    uint64_t header_bytes = 0;
    std::memcpy(&header_bytes, good.data(), 8);
    attempt(good, good.size());
    if (opened != 1) {
        std::cerr << "the file itself is refused\n";
        return 1;
    }
    for (size_t size = 0; size < good.size(); size += size < 200 ? 1 : 499)
        attempt(good, size);
    if (opened != 1) {
        std::cerr << "a file that was cut off is opened\n";
        return 1;
    }
    std::mt19937 random(20240229);
    for (int i = std::atoi(arguments[2]); i > 0; --i) {
        Bytes mutated = good;
        mutate(mutated, static_cast<size_t>(header_bytes) + 8, random);
        attempt(mutated, mutated.size());
    }
    std::cout << opened << " opened, " << refused << " refused\n";
    return 0;
}
