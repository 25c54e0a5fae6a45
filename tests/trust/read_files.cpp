// Reads every file of a folder, with and without its GPU code, and some that cannot be read, while calls of the system
// fail: what the tests of the reader do, alone in a program, so that its branches can be counted.
//
//     read_files FOLDER PIPE
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>

#include "engine_file.h"
#include "error.h"
#include "interpose.h"

namespace {

uf_status status_of(const std::string &path, bool with_gpu_code) {
    try {
        const auto file = std::make_shared<uf::FileBytes>(uf::read_file(path));
        (void)uf::read_engine_file(file->data(), file->size, with_gpu_code);       // copies
        (void)uf::read_engine_file(file->data(), file->size, with_gpu_code, file); // where they lie
        (void)uf::consume_engine_file(file, with_gpu_code);
        return UF_OK;
    } catch (const uf::Error &error) {
        return error.status();
    }
}

} // namespace

int main(int count, char **arguments) {
    if (count != 3)
        return 2;
    std::string whole;
    int opened = 0;
    for (const auto &entry : std::filesystem::directory_iterator(arguments[1]))
        for (const bool with_gpu_code : {false, true})
            if (status_of(entry.path(), with_gpu_code) == UF_OK) {
                whole = entry.path();
                ++opened;
            }
    int wrong = opened == 0;
    for (const std::string &path : {std::string(arguments[1]), std::string(arguments[2]), std::string("no/such/file")})
        wrong += status_of(path, false) != UF_ERR_IO;
    const struct {
        long call; // open, fstat, read of the first bytes, read of the others
        int manner;
        uf_status status;
    } cases[] = {{1, INTERPOSE_FAIL, UF_ERR_IO}, {2, INTERPOSE_FAIL, UF_ERR_IO}, {3, INTERPOSE_FAIL, UF_ERR_IO},
                 {3, INTERPOSE_END, UF_ERR_IO},  {3, INTERPOSE_SHORT, UF_OK},    {3, INTERPOSE_INTERRUPT, UF_OK},
                 {4, INTERPOSE_FAIL, UF_ERR_IO}, {4, INTERPOSE_END, UF_ERR_IO},  {4, INTERPOSE_SHORT, UF_OK}};
    for (const auto &one : cases) {
        interpose_arm(INTERPOSE_READ, one.call, one.manner);
        wrong += status_of(whole, false) != one.status;
        interpose_arm(INTERPOSE_NOTHING, 0, INTERPOSE_FAIL);
    }
    std::printf("%d opened, %d wrong\n", opened, wrong);
    return wrong != 0;
}
