//! The store, through its doors.
//!
//! - [`conformance`]: what every store must do, as functions over a [`world::World`]. Run here on SQLite, on PostgreSQL
//!   and on the engine in memory; another engine runs the same list.
//! - [`limits`]: how many sessions may run and wait.
//! - [`many`]: several processes on one database, and a database that goes away.
//! - [`model`]: random histories against a model in memory.
//! - [`opening`]: the data directory: its lock, its format, restarts.
//! - [`crash`]: `kill -9` under load.

mod conformance;
mod crash;
mod limits;
mod many;
mod model;
mod opening;
mod world;

use world::World;

/// Runs each function of the list on a store of its own, on SQLite.
macro_rules! on_sqlite {
    ($($topic:ident { $($name:ident,)* })*) => {$(
        mod $topic {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    let world = super::World::on_sqlite();
                    crate::conformance::$topic::$name(&world).await;
                    world.check_rebuild().await;
                }
            )*
        }
    )*};
}

conformance::suite!(on_sqlite);

/// Runs each function of the list in a database of its own, on PostgreSQL.
macro_rules! on_postgres {
    ($($topic:ident { $($name:ident,)* })*) => {
        mod on_postgres {$(
            mod $topic {
                $(
                    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                    async fn $name() {
                        let world = crate::World::on_postgres().await;
                        crate::conformance::$topic::$name(&world).await;
                        world.check_rebuild().await;
                    }
                )*
            }
        )*}
    };
}

conformance::suite!(on_postgres);

/// The same in memory, in one thread.
macro_rules! on_memory {
    ($($topic:ident { $($name:ident,)* })*) => {
        mod in_memory {$(
            mod $topic {
                $(
                    #[tokio::test]
                    async fn $name() {
                        let world = crate::world::World::in_memory();
                        crate::conformance::$topic::$name(&world).await;
                        world.check_rebuild().await;
                    }
                )*
            }
        )*}
    };
}

conformance::suite!(on_memory);
