// Passes in the pauses between calls: after a tenth of a second without work a call takes nearly twice as long, since
// others have used the caches and the processors have been put to sleep.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>

#include "own_threads.h"

namespace uf {

class KeepWarm {
  public:
    using Calls = std::atomic<int>;

    // After each pause of that length a thread calls `pass(calls)`, which must return soon once `calls` is not 0.  It
    // is the thread of that number in the schedule; UF_ERR_INVALID_ARGUMENT or UF_ERR_UNSUPPORTED is thrown if the
    // system refuses that.  It does not exist in a child made by fork; calls go on there, cold.
    KeepWarm(std::chrono::milliseconds pause, const ThreadSchedule &schedule, int number,
             std::function<void(const Calls &calls)> pass);
    ~KeepWarm();
    KeepWarm(const KeepWarm &) = delete;
    KeepWarm &operator=(const KeepWarm &) = delete;

    // A call to the engine, which waits until a pass that is under way has given up its memory.
    class Call {
      public:
        // Null: nothing is kept warm.
        explicit Call(KeepWarm *keep_warm);
        ~Call();
        Call(const Call &) = delete;
        Call &operator=(const Call &) = delete;

      private:
        KeepWarm *const keep_warm_;
    };

  private:
    struct State;
    std::unique_ptr<State> state_;
};

} // namespace uf
