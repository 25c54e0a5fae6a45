// A persistent pool of worker threads that runs one loop body over a range of tasks.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace uf {

// Where and how the workers run.  The threads that call `run` are not touched.
struct ThreadSchedule {
    static constexpr int most_processors = 1024;
    std::vector<int> processors; // one for each worker in turn, below most_processors; empty: wherever the process may
    int priority = 0;            // 1..99: SCHED_FIFO of that priority; 0: as the thread that starts them
};

class ThreadPool {
  public:
    // `threads` counts the calling thread too: 1 starts no workers.  Workers start at the first `run`, and again in
    // the child after a fork.  With a schedule they start at once, and UF_ERR_INVALID_ARGUMENT or UF_ERR_UNSUPPORTED is
    // thrown if the system refuses it.
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
