#include "context_pool.h"

#include <pthread.h>

#include <algorithm>
#include <iterator>
#include <new>

namespace uf {

namespace {

bool equal(const PassShape &a, const PassShape &b) {
    return a.count == b.count && a.height == b.height && a.width == b.width;
}

} // namespace

std::mutex &brief_mutex() {
    static std::mutex mutex;
    static const bool registered = [] {
        if (pthread_atfork([] { mutex.lock(); }, [] { mutex.unlock(); }, [] { mutex.unlock(); }) != 0)
            throw std::bad_alloc();
        return true;
    }();
    static_cast<void>(registered);
    return mutex;
}

std::byte *Workspace::staging(size_t needed) {
    if (std::byte *const own = context->result_staging(); own != nullptr)
        return own;
    results.resize(std::max(results.size(), needed));
    return results.data();
}

float *Workspace::scratch(size_t count) {
    values.resize(std::max(values.size(), count));
    return values.data();
}

double Workspace::bytes() const {
    return context->bytes() +
           static_cast<double>(pixels.capacity() + results.capacity() + values.capacity() * sizeof(float));
}

std::unique_ptr<Workspace> make_workspace(const Executor &executor, const PassShape &shape) {
    auto workspace = std::make_unique<Workspace>();
    const auto count = static_cast<size_t>(shape.count);
    workspace->context = executor.make_context(shape);
    workspace->images.resize(count);
    workspace->transforms.resize(count);
    workspace->outputs.resize(count);
    return workspace;
}

ContextPool::ContextPool(const Executor &executor) : executor_(executor) {}

std::unique_ptr<Workspace> ContextPool::take(const PassShape &shape) {
    {
        const std::lock_guard<std::mutex> lock(brief_mutex());
        const auto latest = std::find_if(idle_.rbegin(), idle_.rend(), [&](const std::unique_ptr<Workspace> &idle) {
            return equal(idle->context->shape(), shape);
        });
        if (latest != idle_.rend()) {
            std::unique_ptr<Workspace> found = std::move(*latest);
            idle_.erase(std::prev(latest.base()));
            return found;
        }
    }
    return make_workspace(executor_, shape);
}

std::unique_ptr<Workspace> ContextPool::take_latest() {
    const std::lock_guard<std::mutex> lock(brief_mutex());
    if (idle_.empty())
        return nullptr;
    std::unique_ptr<Workspace> found = std::move(idle_.back());
    idle_.pop_back();
    return found;
}

void ContextPool::give_back(std::unique_ptr<Workspace> workspace) {
    std::vector<std::unique_ptr<Workspace>> surplus; // freed after the mutex is
    const std::lock_guard<std::mutex> lock(brief_mutex());
    idle_.push_back(std::move(workspace));
    double total = 0.0;
    for (auto place = idle_.end(); place != idle_.begin();) {
        --place;
        const double bytes = (*place)->bytes();
        if (total + bytes > most_idle_bytes) {
            surplus.push_back(std::move(*place));
            place = idle_.erase(place);
        } else {
            total += bytes;
        }
    }
}

} // namespace uf
