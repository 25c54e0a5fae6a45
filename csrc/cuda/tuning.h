// Which candidate of each step runs first: tables of measured choices, their files, and what is taken from them.
//
// A table is a JSON file (docs/design.md, "Tuning").  One that `uf_engine_tune` writes goes to the user's cache, under
// a name made of device, driver and engine; one that was measured by others for a kind of GPU and a network lies beside
// the library, in `tunings/`, or in the folder that UNET_FAST_TUNINGS names.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "cuda/cuda_device.h"
#include "cuda/kernel_selection.h"

namespace uf::cuda {

// Where the order of the candidates comes from, for uf_info.
struct Tuning {
    std::string about; // one sentence
    std::string file;  // "" for the order of the engine file
};

// What was measured of one step: seconds of each candidate that gives the right result, that of the engine file first.
struct TunedStep {
    size_t op = 0;
    int step = 0;
    std::string variant; // pixel or result type where the step has candidates for each, else ""
    std::vector<std::pair<std::string, double>> seconds;
    std::string winner;
};

struct TuningTable {
    int count = 1, height = 0, width = 0; // of the images it was measured with
    std::vector<TunedStep> steps;
};

// Name of a step's list of candidates: "", "uint8", "uint16", "float32", "mask" or "probability".
std::string variant_name(const Step &step, size_t variant);

// Orders the candidates by the table in the cache for this device, driver and engine, else by one that came with the
// library, else leaves them.  A file that cannot be used is passed over; `about` of the result says why.
Tuning apply_tuning(Selection &selection, const Plan &plan, const Device &device);

// Puts the winners in front.  Throws uf::Error where the table names what the selection does not have.
void order_by(const TuningTable &table, Selection &selection);

// Writes the table to `path`, or to the cache where that is empty, beside the old one and then in its place.  Returns
// the path.  Throws UF_ERR_IO.
std::string keep_tuning(const TuningTable &table, const Selection &selection, const Plan &plan, const Device &device,
                        const std::string &path);

} // namespace uf::cuda
