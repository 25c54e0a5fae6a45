// The thread pool alone: each task once, worker numbers unique, several callers, forks.  Built with -fsanitize=thread
// too.
#include "thread_pool.h"

#include "process.h"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

void require(bool condition, const char *what) {
    if (!condition) {
        std::fprintf(stderr, "not true: %s\n", what);
        std::exit(1);
    }
}

// One loop; its tasks write to plain memory, which the caller reads afterwards.
void run_once(uf::ThreadPool &pool, int tasks) {
    std::vector<int> done(static_cast<size_t>(tasks), 0);
    std::vector<std::atomic<int>> inside(static_cast<size_t>(pool.threads()));
    std::atomic<bool> clash{false};
    pool.run(tasks, [&](int64_t task, int worker) {
        if (worker < 0 || worker >= pool.threads() || inside[static_cast<size_t>(worker)].fetch_add(1) != 0)
            clash = true;
        ++done[static_cast<size_t>(task)];
        inside[static_cast<size_t>(worker)].fetch_sub(1);
    });
    require(!clash, "worker numbers are in range and unique");
    for (const int times : done)
        require(times == 1, "each task runs once");
}

void run_many(uf::ThreadPool &pool, int loops) {
    for (int loop = 0; loop < loops; ++loop) {
        run_once(pool, loop % 37);
        if (loop % 64 == 0) // so that the workers fall asleep now and then
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
}

void run_from_several_threads(uf::ThreadPool &pool, int loops) {
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 4; ++caller)
        callers.emplace_back([&] { run_many(pool, loops); });
    for (std::thread &caller : callers)
        caller.join();
}

// Runs `body` in a child, which must end by itself within ten seconds.
template <class Body> void in_child(const Body &body) {
    const pid_t child = fork();
    require(child >= 0, "fork works");
    if (child == 0) {
        alarm(10);
        body();
        std::exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    require(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child ends well");
}

} // namespace

int main(int count, char **) {
    const bool forks = count == 1;               // any argument: no forks, which ThreadSanitizer does not follow
    for (const int threads : {1, 2, 3, 8, 40}) { // 40: more than a loop has shares
        uf::ThreadPool pool(threads);
        require(pool.threads() == threads, "as many threads as asked for");
        if (forks)
            in_child([&] { run_many(pool, 20); }); // before the first use
        run_many(pool, 500);
        if (forks)
            in_child([&] { run_from_several_threads(pool, 50); });
        run_from_several_threads(pool, 500);
        if (forks) { // while other threads are inside
            std::atomic<bool> stop{false};
            std::thread busy([&] {
                while (!stop)
                    run_once(pool, 100);
            });
            for (int i = 0; i < 20; ++i)
                in_child([&] { run_many(pool, 5); });
            stop = true;
            busy.join();
        }
    }
    {
        const int before = settled_threads();
        uf::ThreadPool unused(4);
        require(entries("/proc/self/task") == before + 3, "workers start at once");
    }
    std::puts("ok");
    return 0;
}
