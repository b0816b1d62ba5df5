//! A thread for what can wait: it lets whoever serves miners go first, whatever it has to do.
//!
//! Nothing here decides what that is, and nothing that a share waits for may run here.

use std::future::Future;

use tokio::sync::oneshot;

/// How much the thread yields to others, as `nice` has it: under full load it gets a tenth of what a thread of the
/// miners does, and while a processor is idle all of that.
const NICENESS: i32 = 10;

/// Runs what `start` makes on a thread of its own, which with all threads that it starts yields to others. `start` is
/// called there, so that sockets and timers belong to that thread.
///
/// # Panics
/// When the thread cannot be started, or what runs on it panics.
pub async fn run<F: Future<Output = ()>>(name: &'static str, start: impl FnOnce() -> F + Send + 'static) {
    let (done, ended) = oneshot::channel();
    let run = move || {
        // Linux has a niceness for each thread, which the threads that it starts inherit. Where none can be set, readers
        // are served all the same.
        let _ = rustix::process::nice(NICENESS);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a thread that has started can wait for events");
        runtime.block_on(async { start().await });
        runtime.shutdown_background();
        // Whoever waited for it may have gone.
        let _ = done.send(());
    };
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(run).expect("the system starts a thread more");
    ended.await.expect("what runs in the background does not panic");
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn it_yields_and_so_do_the_threads_that_it_starts() {
        let own = || rustix::process::getpriority_process(None).expect("a thread knows its niceness");
        let before = own();
        let (sender, seen) = mpsc::channel();
        let task = move || async move {
            let helper = tokio::task::spawn_blocking(own).await.expect("it does not panic");
            sender.send((own(), helper)).expect("the test waits");
        };
        run("test", task).await;
        let expected = (before + NICENESS).min(19);
        assert_eq!(seen.recv().expect("it ran"), (expected, expected));
        assert_eq!(own(), before, "nobody else does");
    }

    #[tokio::test]
    #[should_panic(expected = "does not panic")]
    async fn a_panic_is_told() {
        run("test", || async { panic!("on purpose") }).await;
    }
}
