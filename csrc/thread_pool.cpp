#include "thread_pool.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "float_mode.h"

namespace uf {

namespace {

// How long a thread looks out for the next loop, or for the end of this one, before it sleeps.  Waking a sleeper takes
// 5 to 50 us; the gaps between the loops of a pass are shorter than that.
constexpr std::chrono::microseconds spin_time{50};

void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// True as soon as `ready()` is; false after spin_time.
template <class Ready> bool spin_until(const Ready &ready) {
    const auto deadline = std::chrono::steady_clock::now() + spin_time;
    do {
        for (int i = 0; i < 32; ++i) {
            if (ready())
                return true;
            relax();
        }
    } while (std::chrono::steady_clock::now() < deadline);
    return ready();
}

// One loop; it lives on the stack of the thread that called `run`.
//
// Each worker begins with a share of its own, which is the same part of the range in every loop, so that it mostly
// finds in its cache what it wrote in the loop before; then it takes over what is left of the other shares.
struct Loop {
    using Invoke = void (*)(const void *context, int64_t task, int worker);

    struct alignas(64) Share { // one cache line, as the workers count at the same time
        std::atomic<int64_t> next{0};
        int64_t end = 0;
    };

    Loop(Invoke body, const void *body_context, int64_t task_count, int threads)
        : invoke(body), context(body_context), tasks(task_count), share_count(std::min(threads, most_shares)) {
        for (int i = 0; i < share_count; ++i) {
            shares[i].next.store(tasks * i / share_count, std::memory_order_relaxed);
            shares[i].end = tasks * (i + 1) / share_count;
        }
    }

    void work(int worker) {
        for (int i = 0; i < share_count; ++i) {
            Share &share = shares[(worker + i) % share_count];
            for (int64_t task; (task = share.next.fetch_add(1, std::memory_order_relaxed)) < share.end;)
                invoke(context, task, worker);
        }
    }

    bool exhausted() const {
        return std::all_of(shares, shares + share_count,
                           [](const Share &share) { return share.next.load(std::memory_order_relaxed) >= share.end; });
    }

    static constexpr int most_shares = 32;

    const Invoke invoke;
    const void *const context;
    const int64_t tasks;
    const int share_count;
    Share shares[most_shares];
    std::atomic<int> helpers{0}; // workers inside; changed under the mutex
    Loop *following = nullptr;
};

// The worker threads of one pool in one process.
class Workers {
  public:
    explicit Workers(unsigned made_in_generation) : generation(made_in_generation) {}

    ~Workers() {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            stopping_ = true;
            ++changes_;
        }
        work_.notify_all();
        for (std::thread &thread : threads_)
            thread.join();
    }

    // Starts as many threads as there can be, up to `count`, if none has been started before.
    void start(int count, const ThreadSchedule &schedule) {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (started_)
            return;
        started_ = true;
        const SignalsBlocked blocked;
        try {
            threads_.reserve(static_cast<size_t>(count));
            for (int worker = 1; worker <= count; ++worker) {
                threads_.emplace_back([this, worker] { serve(worker); });
                const ScheduleErrors errors = apply(schedule, worker - 1, threads_.back().native_handle());
                if (errors.affinity != 0 || errors.priority != 0)
                    errors_ = errors;
            }
        } catch (const std::exception &) {
            // Out of threads or memory: those that there are do the work.
        }
    }

    void run(Loop &loop) {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            Loop **last = &loops_;
            while (*last != nullptr)
                last = &(*last)->following;
            *last = &loop;
            changes_.fetch_add(1, std::memory_order_release);
            for (int64_t wanted = std::min<int64_t>(loop.tasks - 1, sleepers_); wanted > 0; --wanted)
                work_.notify_one();
        }
        loop.work(0);
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            Loop **place = &loops_;
            while (*place != &loop)
                place = &(*place)->following;
            *place = loop.following;
        }
        const auto done = [&] { return loop.helpers.load(std::memory_order_acquire) == 0; };
        if (spin_until(done))
            return; // a helper does not touch the loop after it has counted itself out
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, done);
    }

    const ScheduleErrors &errors() const { return errors_; }

    const unsigned generation;

  private:
    void serve(int worker) {
        pthread_setname_np(pthread_self(), "unet_fast");
        const DefaultFloatMode mode;
        std::unique_lock<std::mutex> lock(mutex_);
        while (!stopping_) {
            if (Loop *loop = open_loop()) {
                loop->helpers.fetch_add(1, std::memory_order_relaxed);
                lock.unlock();
                loop->work(worker);
                lock.lock();
                if (loop->helpers.fetch_sub(1, std::memory_order_release) == 1)
                    done_.notify_all();
                continue;
            }
            const uint64_t seen = changes_.load(std::memory_order_relaxed);
            lock.unlock();
            const bool changed = spin_until([&] { return changes_.load(std::memory_order_acquire) != seen; });
            lock.lock();
            if (!changed) {
                ++sleepers_;
                work_.wait(lock, [&] { return changes_.load(std::memory_order_relaxed) != seen; });
                --sleepers_;
            }
        }
    }

    Loop *open_loop() const {
        for (Loop *loop = loops_; loop != nullptr; loop = loop->following)
            if (!loop->exhausted())
                return loop;
        return nullptr;
    }

    std::mutex mutex_;
    std::condition_variable work_, done_;
    Loop *loops_ = nullptr;            // those that may still have tasks, oldest first
    std::atomic<uint64_t> changes_{0}; // new loops and the end
    int sleepers_ = 0;
    bool started_ = false, stopping_ = false;
    ScheduleErrors errors_;
    std::vector<std::thread> threads_;
};

} // namespace

struct ThreadPool::State {
    State(int thread_count, const ThreadSchedule &wanted) : threads(thread_count), schedule(wanted) {}

    ~State() {
        Workers *last = workers.load();
        if (last != nullptr && last->generation == fork_generation)
            delete last;
    }

    // The workers of this process.  Those of the parent are abandoned: their threads did not come along, and their
    // mutex may have been held when the process was forked.
    Workers &current() {
        Workers *found = workers.load(std::memory_order_acquire);
        const unsigned generation = fork_generation;
        if (found == nullptr || found->generation != generation) {
            auto fresh = std::make_unique<Workers>(generation);
            if (workers.compare_exchange_strong(found, fresh.get()))
                found = fresh.release();
            found->start(threads - 1, schedule);
        }
        return *found;
    }

    const int threads;
    const ThreadSchedule schedule;
    std::atomic<Workers *> workers{nullptr};
};

ThreadPool::ThreadPool(int threads, const ThreadSchedule &schedule)
    : state_(std::make_unique<State>(std::max(threads, 1), schedule)) {
    watch_forks();
    if (state_->threads > 1)
        require_accepted(schedule, state_->current().errors());
}

ThreadPool::~ThreadPool() = default;

int ThreadPool::threads() const { return state_->threads; }

void ThreadPool::run_erased(int64_t tasks, Invoke invoke, const void *context) {
    if (tasks <= 1 || state_->threads == 1) {
        for (int64_t task = 0; task < tasks; ++task)
            invoke(context, task, 0);
        return;
    }
    Loop loop(invoke, context, tasks, state_->threads);
    state_->current().run(loop);
}

} // namespace uf
