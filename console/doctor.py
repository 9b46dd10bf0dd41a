"""What `doctor` found, for people."""

from demkd.console.output import decimal_bytes, escape, plain_table, stdout
from demkd.pipeline.results import DoctorReport


def show_doctor(report: DoctorReport) -> None:
    """Versions, devices and what this machine can do, a line each."""
    console = stdout()
    table = plain_table(left=("", ""))
    table.show_header = False
    for name, version in report.versions.items():
        table.add_row(name, version or "[bold red]not installed[/]")
    extras = (f"{name} {version}" for name, version in report.extras.items() if version)
    table.add_row("extras", ", ".join(extras) or "none")
    missing = ", ".join(name for name, version in report.extras.items() if version is None)
    table.add_row("not installed", missing or "nothing")
    table.add_section()
    table.add_row("system", escape(report.system))
    table.add_row("cores", f"{report.cores}, and {report.threads} threads of PyTorch's")
    for device in report.devices:
        chosen = " (chosen by auto)" if device.name == report.device else ""
        table.add_row(f"{device.name}{chosen}", f"{escape(device.model)}, {decimal_bytes(device.memory)}")
        table.add_row("", f"precision auto is {device.precision}: {device.reason}")
    table.add_section()
    table.add_row("free disk", f"{decimal_bytes(report.free_bytes)} at {escape(str(report.folder))}")
    table.add_row("decoding", f"{report.photos_per_second:,.0f} photos of 500 x 375 a second, by one process")
    console.print(table)
