#include "keep_warm.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "error.h"

namespace uf {

struct KeepWarm::State {
    using Clock = std::chrono::steady_clock;

    State(std::chrono::milliseconds pause_length, std::function<void(const Calls &)> what)
        : pause(pause_length), pass(std::move(what)) {}

    void serve() {
        pthread_setname_np(pthread_self(), "uf_keep_warm"); // in `top` and debuggers
        std::unique_lock<std::mutex> lock(mutex);
        while (!ending) {
            const Clock::time_point now = Clock::now(), due = calls > 0 ? now + pause : idle_since + pause;
            if (now < due) {
                wake.wait_until(lock, due);
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
    bool own() const { return getpid() == process; }

    const pid_t process = getpid();
    const std::chrono::milliseconds pause;
    const std::function<void(const Calls &)> pass;
    Calls calls{0};   // that run or wait for the mutex
    std::mutex mutex; // held during a pass
    std::condition_variable wake;
    Clock::time_point idle_since = Clock::now();
    bool ending = false;
    std::thread thread;
};

KeepWarm::KeepWarm(std::chrono::milliseconds pause, std::function<void(const Calls &)> pass)
    : state_(std::make_unique<State>(pause, std::move(pass))) {
    // Signals such as Ctrl-C belong to the threads of the program.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
        state_->thread = std::thread([state = state_.get()] { state->serve(); });
    } catch (const std::system_error &) {
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
        throw Error(UF_ERR_OUT_OF_MEMORY, "options.keep_warm_ms needs a thread, and the system grants no more");
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

KeepWarm::~KeepWarm() {
    if (!state_->own()) {
        static_cast<void>(state_.release()); // cannot be taken apart without its thread
        return;
    }
    ++state_->calls; // ends a pass
    {
        const std::lock_guard<std::mutex> lock(state_->mutex);
        state_->ending = true;
    }
    state_->wake.notify_one();
    state_->thread.join();
}

KeepWarm::Call::Call(KeepWarm *keep_warm)
    : keep_warm_(keep_warm != nullptr && keep_warm->state_->own() ? keep_warm : nullptr) {
    if (keep_warm_ == nullptr)
        return;
    ++keep_warm_->state_->calls;
    const std::lock_guard<std::mutex> until_the_pass_has_ended(keep_warm_->state_->mutex);
}

KeepWarm::Call::~Call() {
    if (keep_warm_ == nullptr)
        return;
    const std::lock_guard<std::mutex> lock(keep_warm_->state_->mutex);
    keep_warm_->state_->idle_since = State::Clock::now();
    --keep_warm_->state_->calls;
}

} // namespace uf
