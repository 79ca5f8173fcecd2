//! One file per noun; each function is one command.

mod access;
mod console;
mod host;
mod image;
mod limits;
mod network;
mod task;
mod vm;
mod volume;

use api::client::Client;
use api::ids::TaskId;
use clap::CommandFactory;

use crate::config::Config;
use crate::failure::Failure;
use crate::options::{Command, Options, Wait};
use crate::output::{Output, say};
use crate::waiting;

/// Does what was said.
pub(crate) async fn run(options: Options) -> Result<(), Failure> {
    let output = Output(options.output);
    let signed_in = || -> Result<Client, Failure> {
        let config = Config::read(&Config::path()?)?;
        config.appliance(options.appliance.as_deref())?.1.client()
    };
    match options.command {
        Command::Setup(setup) => access::setup(setup, output).await,
        Command::Login(login) => access::login(login, output).await,
        Command::Logout => access::logout(options.appliance.as_deref(), output).await,
        Command::Token(token) => access::token(&signed_in()?, token, output).await,
        Command::Vm(vm) => vm::run(&signed_in()?, vm, output).await,
        Command::Image(image) => image::run(&signed_in()?, image, output).await,
        Command::Volume(volume) => volume::run(&signed_in()?, volume, output).await,
        Command::Network(network) => network::run(&signed_in()?, network, output).await,
        Command::Host(host) => host::run(&signed_in()?, host, output).await,
        Command::Task(task) => task::run(&signed_in()?, task, output).await,
        Command::Events(events) => task::events(&signed_in()?, &events, output).await,
        Command::Version => host::version(signed_in().ok(), output).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Options::command(), "lqx", &mut script);
            say(String::from_utf8_lossy(&script).trim_end())
        }
    }
}

/// Waits for the task unless told not to.
pub(crate) async fn finish(
    client: &Client,
    task: TaskId,
    wait: &Wait,
    what: &str,
) -> Result<(), Failure> {
    if wait.no_wait {
        return Ok(());
    }
    waiting::task(client, task, wait.timeout, what)
        .await
        .map(drop)
}
