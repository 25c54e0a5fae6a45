// A persistent pool of worker threads that runs one loop body over a range of tasks.
#pragma once

#include <cstdint>
#include <memory>

#include "own_threads.h"

namespace uf {

class ThreadPool {
  public:
    // `threads` counts the calling thread too: 1 starts no workers.  Workers start at once, and in the child after a
    // fork at the first `run` there.  Throws UF_ERR_INVALID_ARGUMENT or UF_ERR_UNSUPPORTED if the system refuses the
    // schedule.
    explicit ThreadPool(int threads, const ThreadSchedule &schedule = {});
    ~ThreadPool();
    ThreadPool(const ThreadPool &) = delete;
    ThreadPool &operator=(const ThreadPool &) = delete;

    int threads() const;

    // Calls body(task, worker) once for each task in [0, tasks); worker in [0, threads()) is unique among the bodies of
    // this call that run at the same time, and the caller takes part as worker 0.  Several threads may call `run` at
    // once.  Allocates nothing.  The body must not throw.
    template <class Body> void run(int64_t tasks, const Body &body) {
        run_erased(
            tasks,
            [](const void *context, int64_t task, int worker) { (*static_cast<const Body *>(context))(task, worker); },
            &body);
    }

  private:
    using Invoke = void (*)(const void *context, int64_t task, int worker);
    void run_erased(int64_t tasks, Invoke invoke, const void *context);

    struct State;
    std::unique_ptr<State> state_;
};

} // namespace uf
