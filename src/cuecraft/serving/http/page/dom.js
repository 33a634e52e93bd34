export const at = (id) => document.getElementById(id);

export function made(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

export const percent = (share) => `${(100 * share).toFixed(1)}%`;
