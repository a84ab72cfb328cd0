"""What tests in virtual time share."""

import asyncio


async def pass_time(seconds: float) -> None:
    """Virtual seconds pass: it takes no real time."""
    await asyncio.sleep(seconds)
