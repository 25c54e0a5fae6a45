// What all threads of the library have in common: how they are started, where they run, and that a fork leaves them
// behind.
#pragma once

#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <vector>

namespace uf {

// Where and how threads of the library run.  The threads of the program are not touched.
struct ThreadSchedule {
    static constexpr int most_processors = 1024;
    std::vector<int> processors; // one for each thread in turn, below most_processors; empty: those of the thread that
                                 // starts them
    int priority = 0;            // 1..99: SCHED_FIFO of that priority; 0: as the thread that starts them
};

// What the system said to a schedule, 0 where it was accepted.
struct ScheduleErrors {
    int affinity = 0, priority = 0;
};

// Puts the thread with that number, from 0, where the schedule says.
ScheduleErrors apply(const ThreadSchedule &schedule, int number, pthread_t thread);

// Throws UF_ERR_INVALID_ARGUMENT or UF_ERR_UNSUPPORTED where the system has refused the schedule.
void require_accepted(const ThreadSchedule &schedule, const ScheduleErrors &errors);

// Threads that are started while this lives get no signals: those such as Ctrl-C belong to the threads of the program.
class SignalsBlocked {
  public:
    SignalsBlocked() {
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before_);
    }
    ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
    SignalsBlocked(const SignalsBlocked &) = delete;
    SignalsBlocked &operator=(const SignalsBlocked &) = delete;

  private:
    sigset_t before_;
};

// Counts the forks that made this process, since watch_forks() was first called.  A thread that was started at another
// count does not exist here, and a mutex of then may be held by it.
extern std::atomic<unsigned> fork_generation;
void watch_forks();

} // namespace uf
