#include "keep_warm.h"

#include <pthread.h>
#include <time.h>

#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "error.h"
#include "float_mode.h"

namespace uf {

namespace {

// A mutex and what its holder waits for.  Whoever holds the mutex has the priority of those who wait for it, so that a
// real-time thread does not wait for all that runs before an ordinary one.
class LendingMutex {
  public:
    LendingMutex() {
        pthread_mutexattr_t lending;
        pthread_mutexattr_init(&lending);
        pthread_mutexattr_setprotocol(&lending, PTHREAD_PRIO_INHERIT);
        if (pthread_mutex_init(&mutex_, &lending) != 0)
            pthread_mutex_init(&mutex_, nullptr); // a kernel without such mutexes
        pthread_mutexattr_destroy(&lending);
        pthread_condattr_t monotonic;
        pthread_condattr_init(&monotonic);
        pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
        pthread_cond_init(&wake_, &monotonic);
        pthread_condattr_destroy(&monotonic);
    }
    ~LendingMutex() {
        pthread_cond_destroy(&wake_);
        pthread_mutex_destroy(&mutex_);
    }
    LendingMutex(const LendingMutex &) = delete;
    LendingMutex &operator=(const LendingMutex &) = delete;

    void lock() { pthread_mutex_lock(&mutex_); }
    void unlock() { pthread_mutex_unlock(&mutex_); }
    void wake() { pthread_cond_signal(&wake_); }
    // Until it is woken or, at the latest, after so long; by the thread that has locked it.
    void wait(std::chrono::nanoseconds at_most) {
        timespec end = {};
        clock_gettime(CLOCK_MONOTONIC, &end);
        constexpr int64_t second = 1000000000;
        const int64_t nanoseconds = end.tv_nsec + at_most.count();
        end.tv_sec += static_cast<time_t>(nanoseconds / second);
        end.tv_nsec = static_cast<decltype(end.tv_nsec)>(nanoseconds % second);
        pthread_cond_timedwait(&wake_, &mutex_, &end);
    }

  private:
    pthread_mutex_t mutex_;
    pthread_cond_t wake_;
};

} // namespace

struct KeepWarm::State {
    using Clock = std::chrono::steady_clock;

    State(std::chrono::milliseconds pause_length, std::function<void(const Calls &)> what)
        : pause(pause_length), pass(std::move(what)) {}

    ~State() {
        ++calls; // ends a pass
        {
            const std::lock_guard<LendingMutex> lock(mutex);
            ending = true;
        }
        mutex.wake();
        if (thread.joinable())
            thread.join();
    }

    void serve() {
        pthread_setname_np(pthread_self(), "uf_keep_warm"); // in `top` and debuggers
        const DefaultFloatMode mode;
        const std::lock_guard<LendingMutex> lock(mutex);
        while (!ending) {
            const Clock::time_point now = Clock::now(), due = calls > 0 ? now + pause : idle_since + pause;
            if (now < due) {
                mutex.wait(due - now);
                continue;
            }
            try {
                pass(calls);
            } catch (const std::exception &) {
                // Short of memory: a colder call is no failure.
            }
            idle_since = Clock::now();
        }
    }

    // Threads do not come along to a child, and the mutex may be held there by one of them.
    bool own() const { return fork_generation == generation; }

    const unsigned generation = fork_generation;
    const std::chrono::milliseconds pause;
    const std::function<void(const Calls &)> pass;
    Calls calls{0};     // that run or wait for the mutex
    LendingMutex mutex; // held during a pass
    Clock::time_point idle_since = Clock::now();
    bool ending = false;
    std::thread thread;
};

KeepWarm::KeepWarm(std::chrono::milliseconds pause, const ThreadSchedule &schedule, int number,
                   std::function<void(const Calls &)> pass) {
    watch_forks();
    state_ = std::make_unique<State>(pause, std::move(pass));
    const SignalsBlocked blocked;
    try {
        state_->thread = std::thread([state = state_.get()] { state->serve(); });
    } catch (const std::system_error &) {
        throw Error(UF_ERR_OUT_OF_MEMORY, "options.keep_warm_ms needs a thread, and the system grants no more");
    }
    require_accepted(schedule, apply(schedule, number, state_->thread.native_handle()));
}

KeepWarm::~KeepWarm() {
    if (!state_->own())
        static_cast<void>(state_.release()); // cannot be taken apart without its thread
}

KeepWarm::Call::Call(KeepWarm *keep_warm)
    : keep_warm_(keep_warm != nullptr && keep_warm->state_->own() ? keep_warm : nullptr) {
    if (keep_warm_ == nullptr)
        return;
    ++keep_warm_->state_->calls;
    const std::lock_guard<LendingMutex> until_the_pass_has_ended(keep_warm_->state_->mutex);
}

KeepWarm::Call::~Call() {
    if (keep_warm_ == nullptr)
        return;
    const std::lock_guard<LendingMutex> lock(keep_warm_->state_->mutex);
    keep_warm_->state_->idle_since = State::Clock::now();
    --keep_warm_->state_->calls;
}

} // namespace uf
