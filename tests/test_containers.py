"""The files for containers, and the commands of the README, name what exists."""

import fnmatch
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from p2p_jax import main

ROOT = Path(__file__).parents[1]
INSTRUCTIONS = [
    (line.split(maxsplit=1)[0], line.split(maxsplit=1)[1])
    for line in re.sub(r'\\\n', ' ', (ROOT / 'Dockerfile').read_text()).splitlines()
    if line and not line.startswith('#')
]
COMPOSE = 'docker-compose.yaml', 'docker-compose.cuda.yaml'


def of(instruction):
    return [arguments for name, arguments in INSTRUCTIONS if name == instruction]


def services(file, **variables):
    """The services of a compose file, with its variables at their defaults or as given."""
    text = (ROOT / file).read_text()
    return yaml.safe_load(re.sub(r'\$\{(\w+):-(.*?)\}', lambda m: variables.get(m[1], m[2]), text))['services']


def check_command(arguments):
    """Checks that a command line of p2p_jax.main has a verb, a configuration, keys and flags that there are."""
    verb, *rest = arguments if arguments and not arguments[0].startswith('-') else ['train', *arguments]
    _, needed, optional = main._VERBS[verb]
    main._check_config_flags(rest)
    given = {flag.removeprefix('--').partition('=')[0] for flag in rest if flag.startswith('--')}
    given = {name for name in given if not name.startswith('config.')}
    assert set(needed) <= given <= {*needed, *optional}, arguments


def test_the_image_runs_the_command_line_as_a_user_of_its_own():
    assert json.loads(of('ENTRYPOINT')[0]) == ['python', '-m', 'p2p_jax.main']
    assert json.loads(of('CMD')[0]) == ['--help']
    assert of('USER') == ['trainer'] and INSTRUCTIONS[-1][0] == 'CMD'
    version = of('FROM')[0].removeprefix('python:').removesuffix('-slim')
    assert f"python_requires='>={version}," in (ROOT / 'setup.py').read_text()
    extras = dict(re.findall(r"(\w+)\) extra='\[(.+?)\]'", of('RUN')[0]))
    assert {name: set(extra.split(',')) for name, extra in extras.items()} == {
        'cpu': {'serve'},
        'cuda': {'serve', 'cuda'},
    }
    for extra in ('serve', 'cuda'):
        assert re.search(rf"^        '{extra}': \[", (ROOT / 'setup.py').read_text(), re.MULTILINE)


def test_the_image_copies_what_it_needs_and_docker_sees_it():
    sources = [source for line in of('COPY') for source in line.split()[:-1]]
    allowed = [line[1:] for line in (ROOT / '.dockerignore').read_text().splitlines() if line.startswith('!')]
    for source in sources:
        assert (ROOT / source).exists()
        assert any(fnmatch.fnmatch(source, rule) or source.startswith(f'{rule}/') for rule in allowed), source
    assert {path.split('/')[0] for path in allowed} == {source.split('/')[0] for source in sources}
    assert {'configs', 'p2p_jax', 'setup.py', 'constraints.txt'} <= set(sources)


def test_the_services_run_commands_that_there_are():
    base, cuda = (services(name) for name in COMPOSE)
    check_command(shlex.split(base['train']['command']))
    check_command(shlex.split(services(COMPOSE[0], ARGS='--config.train.steps=3')['train']['command']))
    with pytest.raises(main.UserError, match='no such key'):
        check_command(shlex.split(services(COMPOSE[0], ARGS='--config.train.step=3')['train']['command']))
    serve = shlex.split(base['serve']['command'])
    check_command(serve)
    check_command(shlex.split(services(COMPOSE[0], MODEL='--model=runs/model.safetensors')['serve']['command']))
    assert '--host=0.0.0.0' in serve, 'what listens to the container alone is not reached from outside'
    programs = {entry.name for entry in importlib.metadata.entry_points(group='console_scripts')}
    assert base['tensorboard']['entrypoint'] in programs
    for service in ('tensorboard', 'serve'):
        port = re.search(r'--port=(\d+)', base[service]['command'])[1]
        assert base[service]['ports'] == [f'127.0.0.1:{port}:{port}']
    assert set(cuda) <= set(base)
    volumes = json.loads(of('VOLUME')[0])
    for service in base.values():
        assert [volume.split(':')[1] for volume in service['volumes']] == volumes
        assert service['build']['args'].keys() == {line.partition('=')[0] for line in of('ARG')}


@pytest.mark.skipif(not shutil.which('make'), reason='no make')
def test_make_starts_the_services():
    def commands(target, *variables):
        command = ['make', '-n', '--no-print-directory', target, *variables]
        # `make test` would hand its own variables down.
        env = {name: value for name, value in os.environ.items() if not name.startswith(('MAKE', 'MFLAGS'))}
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout

    up = commands(
        'service-up', 'ACCELERATOR=cuda', 'CONFIG=configs/polyu.py', 'ARGS=--config.seed=1 --config.ema.decay=0'
    )
    assert re.findall(r'-f (\S+)', up) == list(COMPOSE) and ' up ' in up
    command = up[up.index('ACCELERATOR=') :].split('docker compose')[0]
    variables = dict(word.partition('=')[::2] for word in shlex.split(command))
    assert variables['ACCELERATOR'] == 'cuda' and variables['OWNER'] == '$(id -u):$(id -g)'
    (down,) = commands('service-down').splitlines()
    assert re.findall(r'-f (\S+)', down) == [COMPOSE[0]] and down.endswith(' down')
    check_command(shlex.split(services(COMPOSE[0], **variables)['train']['command']))


def test_the_readme_names_commands_that_there_are():
    blocks = re.findall(r'```sh\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)
    lines = re.sub(r'\\\n', ' ', '\n'.join(blocks)).splitlines()
    found = [
        re.split(r'p2p_jax\.main|docker compose run --rm train|docker run .* p2p_jax ', line)[1:] for line in lines
    ]
    commands = [re.sub('[\'"]', '', end[0].split('#')[0]).split() for end in found if end]
    assert len(commands) > 15
    for command in commands:
        check_command(command)
