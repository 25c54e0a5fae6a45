#include "own_threads.h"

#include <sched.h>

#include <cstring>
#include <mutex>
#include <new>

#include "error.h"
#include "message.h"

namespace uf {

std::atomic<unsigned> fork_generation{0};

void watch_forks() {
    static std::once_flag once;
    std::call_once(once, [] {
        if (pthread_atfork(nullptr, nullptr, [] { ++fork_generation; }) != 0)
            throw std::bad_alloc();
    });
}

ScheduleErrors apply(const ThreadSchedule &schedule, int number, pthread_t thread) {
    ScheduleErrors errors;
    if (!schedule.processors.empty()) {
        const auto place = static_cast<size_t>(number) % schedule.processors.size();
        cpu_set_t processor;
        CPU_ZERO(&processor);
        CPU_SET(static_cast<size_t>(schedule.processors[place]), &processor);
        errors.affinity = pthread_setaffinity_np(thread, sizeof processor, &processor);
    }
    if (schedule.priority != 0) {
        sched_param parameters = {};
        parameters.sched_priority = schedule.priority;
        errors.priority = pthread_setschedparam(thread, SCHED_FIFO, &parameters);
    }
    return errors;
}

void require_accepted(const ThreadSchedule &schedule, const ScheduleErrors &errors) {
    if (errors.affinity != 0)
        throw Error(UF_ERR_INVALID_ARGUMENT,
                    message("options.thread_affinity names a processor that this process may not use: ",
                            std::strerror(errors.affinity)));
    if (errors.priority != 0)
        throw Error(UF_ERR_UNSUPPORTED,
                    message("options.thread_priority is ", schedule.priority, ": ", std::strerror(errors.priority),
                            "; real-time threads need CAP_SYS_NICE or a limit (ulimit -r) of at least that"));
}

} // namespace uf
